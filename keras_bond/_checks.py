"""Argument checks shared by all rooms: one message for one kind of mistake.

Each returns what it checked as Python's own number, whoever's it was (NumPy's, a tensor of one element): what is stored can
be written as JSON, and multiplies a tensor of any backend. One value comes alone, several as a tuple.
"""

import math
import operator


def check_at_least(least, **values):
    """Each keyword must be an integer of at least `least`.

    >>> check_at_least(1, batch_size=4, num_samples=2)
    (4, 2)
    """
    return _check(operator.index, f"be an integer of at least {least}", lambda value: value >= least, values)


def check_number(expected, holds, **values):
    """Each keyword must be a number for which `holds(number)`; `expected` says so in words, after "must".

    >>> check_number("lie in (0, 1]", lambda eta: 0 < eta <= 1, eta=1)
    1.0
    """
    return _check(float, expected, holds, values)


def check_share(**values):
    """Each keyword must lie in [0, 1]."""
    return check_number("lie in [0, 1]", lambda value: 0 <= value <= 1, **values)


def check_not_negative(**values):
    """Each keyword must be at least 0."""
    return check_number("be at least 0", lambda value: value >= 0, **values)


def check_positive(**values):
    """Each keyword must be above 0."""
    return check_number("be above 0", lambda value: value > 0, **values)


def _check(convert, expected, holds, values):
    checked = []
    for name, value in values.items():
        try:
            checked.append(convert(value))
            fits = not isinstance(value, bool | str | bytes) and math.isfinite(checked[-1]) and holds(checked[-1])
        except (TypeError, ValueError):  # no number, or more than one
            fits = False
        if not fits:
            finite = "be finite and " if checked and checked[-1] == math.inf else ""
            raise ValueError(f"`{name}` must {finite}{expected}. Received: {name}={value!r}")
    return checked[0] if len(checked) == 1 else tuple(checked)
