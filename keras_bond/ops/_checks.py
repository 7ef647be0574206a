"""Argument checks shared by the ops."""

import operator

from keras import ops


def as_float(value):
    """`value` as a float32 tensor (or in its own dtype where that is a wider float)."""
    value = ops.convert_to_tensor(value)
    return value if str(value.dtype).endswith("float64") else ops.cast(value, "float32")


def check_n(n, most=None):
    """`n` as an int: at least 1, and at most `most`, the samples per prompt, where that is given."""
    try:
        count = 0 if isinstance(n, bool) else operator.index(n)
    except TypeError:
        count = 0
    if count >= 1 and (most is None or count <= most):
        return count
    if most is None:
        expected = "an integer of at least 1, the number of samples of Best-of-n"
    else:
        expected = f"an integer from 1 to {most}, the samples per prompt"
    raise ValueError(f"`n` must be {expected}. Received: n={n!r}")


def check_vector(name, value):
    if len(value.shape) != 1:
        raise ValueError(f"`{name}` must have shape (batch,). Received: {name}.shape={tuple(value.shape)}")


def check_samples(rewards, anchor_rewards):
    """`reward` must be (B,) and `anchor_rewards` (B, k) with the same B and k >= 1."""
    check_vector("reward", rewards)
    if len(anchor_rewards.shape) != 2 or anchor_rewards.shape[0] != rewards.shape[0] or anchor_rewards.shape[1] == 0:
        raise ValueError(
            "`anchor_rewards` must have shape (batch, k), a row of k >= 1 anchor samples for each entry of `reward`. "
            f"Received: reward.shape={tuple(rewards.shape)}, anchor_rewards.shape={tuple(anchor_rewards.shape)}"
        )
