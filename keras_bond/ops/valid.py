"""Samples without a reward: NaN, wherever rewards or what is made of them are asked for. They count nowhere."""

from keras import ops

from keras_bond.ops._checks import as_float


def is_valid(values):
    """Whether each of `values` is there, that is not NaN: a bool tensor of the same shape."""
    return ops.logical_not(ops.isnan(as_float(values)))


def valid_mean(values, valid=None):
    """The mean of those that count; 0 where none does.

    Args:
        values: of any shape.
        valid: bool, of the same shape: which count; by default those that are not NaN.

    Returns:
        Scalar.

    Example:

    >>> float(valid_mean([1.0, float("nan"), 2.0]))
    1.5
    """
    values = as_float(values)
    valid = is_valid(values) if valid is None else ops.convert_to_tensor(valid, "bool")
    count = ops.sum(ops.cast(valid, values.dtype))
    return ops.sum(ops.where(valid, values, 0.0)) / ops.maximum(count, 1.0)
