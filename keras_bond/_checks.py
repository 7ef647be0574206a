"""Argument checks shared by all rooms: one message for one kind of mistake."""


def check_at_least(least, **values):
    """Each keyword must be an integer of at least `least`."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"`{name}` must be an integer of at least {least}. Received: {name}={value!r}")


def check_share(**values):
    """Each keyword must lie in [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must lie in [0, 1]. Received: {name}={value}")


def check_not_negative(**values):
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"`{name}` must be at least 0. Received: {name}={value}")


def check_positive(**values):
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"`{name}` must be above 0. Received: {name}={value}")
