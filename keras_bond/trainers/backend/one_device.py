"""What holds where one process and one program see all rows of a batch; a backend overrides what differs there."""

import contextlib

import keras


def rows_here(value):
    """The rows of a batch that this process holds: all of them, as a NumPy array."""
    return keras.ops.convert_to_numpy(value)


def rows_spread(value):
    """A batch of which this process holds these rows: there is no other process."""
    return value


class OneDevice(keras.Model):
    def sync(self):
        """Give the variables their present values, for a callback that reads them between two steps: they have them."""

    def distributed(self):
        """A context in which the distribution of this trainer is in force."""
        return contextlib.nullcontext()

    def by_replica(self, function, rows):
        """`function(rows)`, rows in and rows out, where every replica of a program computes its share of them."""
        return function(rows)
