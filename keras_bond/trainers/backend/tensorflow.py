"""TensorFlow: variables are read and written in place; the update is one compiled `tf.function`."""

import keras
import tensorflow as tf


def gradient(function, value):
    """d function(value) / d value, of a scalar function of one tensor."""
    with tf.GradientTape() as tape:
        tape.watch(value)
        result = function(value)
    return tf.convert_to_tensor(tape.gradient(result, value))


def rows_here(value):
    """The rows of a batch that this process holds: all of them, as a NumPy array."""
    return keras.ops.convert_to_numpy(value)


def rows_spread(value):
    """A batch of which this process holds these rows: there is no other process."""
    return value


class BackendTrainer(keras.Model):
    def sync(self):
        """Variables always hold their present values here."""

    def _collect_before(self, step, observe=lambda trajectory: None):
        def function(iterator):
            (rows,) = next(iterator)
            trajectory = self.collect_or_restore(rows)
            # with the batch's size as an integer, TensorFlow keeps every shape known when another batch is smaller
            logs = step(iter([(trajectory, rows.shape[0])]))
            observe(trajectory)
            return logs

        return function

    def train_step(self, data):
        trajectory, _ = data
        with tf.GradientTape() as tape:
            loss, logs = self.loss_and_logs(trajectory)
            scale = self.optimizer.scale_loss(tf.ones(()))
            scaled = loss * scale
        gradients = tape.gradient(scaled, self.trainable_weights)
        updates = self.optimizer.iterations + 0  # a value, not the variable
        self.optimizer.apply(gradients, self.trainable_weights)
        gradients = [tf.convert_to_tensor(g) for g in gradients if g is not None]
        return self.finish_update(logs, gradients, scale, updates)

    def test_step(self, data):
        trajectory, _ = data
        return self.track(self.loss_and_logs(trajectory)[1], weight=trajectory.reward.shape[0])
