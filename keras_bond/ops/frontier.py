"""The win-rate/KL frontier: no policy has a higher win rate against the reference at the same KL.

With u the reward quantile under the reference, KL(pi || pi_ref) is at least that of u's density f against the uniform
one, and the win rate is the mean of u. Of all densities with a given mean the exponential tilt
f_c(u) = c e^(cu) / (e^c - 1) has the least KL. (Ours: the paper plots reward against KL without this bound.)
"""

import math

from keras import ops

from keras_bond.ops._checks import as_float

_SERIES_BELOW = 1.0  # where the closed forms lose digits to cancellation
_LOG_C = (math.log(1e-4), math.log(1e6))


def _tilted(c):
    """(win rate, KL) of the tilt c > 0."""
    small = ops.minimum(c, _SERIES_BELOW)
    square = small * small
    win_rate_series = 0.5 + small / 12 * (1 - square / 60 * (1 - square / 42 * (1 - square / 40)))
    kl_series = square / 24 * (1 - square / 40 * (1 - square * 5 / 189 * (1 - square * 21 / 800)))
    large = ops.maximum(c, _SERIES_BELOW)
    win_rate = -1 / ops.expm1(-large) - 1 / large
    decay = ops.exp(-large)
    kl = ops.log(large) - 1 + large * decay / (1 - decay) - ops.log1p(-decay)
    return ops.where(c < _SERIES_BELOW, win_rate_series, win_rate), ops.where(c < _SERIES_BELOW, kl_series, kl)


def _solve(index, target):
    """The tilt c whose `_tilted(c)[index]` is `target`, by bisection in log c (both are increasing in c)."""
    low, high = ops.full_like(target, _LOG_C[0]), ops.full_like(target, _LOG_C[1])
    for _ in range(60):
        middle = (low + high) / 2
        below = _tilted(ops.exp(middle))[index] < target
        low, high = ops.where(below, middle, low), ops.where(below, high, middle)
    return ops.exp((low + high) / 2)


def frontier_win_rate(kl):
    """The best win rate against the reference that any policy reaches at `kl` nats, ties counting half.

        win_rate(c) = 1/(1 - e^-c) - 1/c,     KL(c) = log(c/(e^c - 1)) + c * win_rate(c)

    Args:
        kl: KL(pi || pi_ref) in nats, any shape, >= 0.

    Returns:
        Float tensor of the same shape, in [1/2, 1).

    Example:

    >>> round(float(frontier_win_rate(0.193)), 3)  # Best-of-2 reaches 0.667 at this KL
    0.676
    """
    kl = as_float(kl)
    return ops.where(kl > 0, _tilted(_solve(1, kl))[0], 0.5)


def frontier_kl(win_rate):
    """The least KL to the reference, in nats, of any policy with this win rate: the inverse of `frontier_win_rate`.

    A win rate of 1/2 or less costs nothing: 0.

    >>> round(float(frontier_kl(0.75)), 3)
    0.409
    """
    win_rate = as_float(win_rate)
    return ops.where(win_rate > 0.5, _tilted(_solve(0, win_rate))[1], 0.0)


def frontier_efficiency(win_rate, kl):
    """Share of the possible gain in win rate that a policy reaches at its KL.

        (win_rate - 1/2) / (win_rate*(kl) - 1/2)

    Best-of-n scores 0.95, 0.99, 1.00 for n = 2, 4, 16. It flatters a policy of large KL: see `kl_efficiency`.

    >>> round(float(frontier_efficiency(2 / 3, 0.1931)), 2)
    0.95
    """
    return (as_float(win_rate) - 0.5) / (frontier_win_rate(kl) - 0.5)


def kl_efficiency(win_rate, kl):
    """Share of the spent KL that its win rate needed: KL*(win_rate) / kl.

    >>> round(float(kl_efficiency(2 / 3, 0.1931)), 2)
    0.89
    """
    return frontier_kl(win_rate) / as_float(kl)


def accuracy_kl(accuracy, base):
    """The least KL to the reference, in nats, of any policy that is right with chance `accuracy`, the reference with `base`.

        a log(a / p) + (1 - a) log((1 - a) / (1 - p)),   0 where a <= p

    It is reached by the policy that has the reference's right answers a/p times as often. Of means over prompts it is a
    lower bound, for it is convex.

    Args:
        accuracy, base: in [0, 1], of one shape.

    Returns:
        Float tensor of the same shape, infinite where the reference is never right and the policy is.

    Example:

    >>> round(float(accuracy_kl(0.8, 0.4)), 3)
    0.335
    """
    a, p = as_float(accuracy), as_float(base)

    def part(share, of):
        return ops.where(share > 0, share * ops.log(ops.where(share > 0, share, 1.0) / of), 0.0)

    return ops.where(a > p, part(a, p) + part(1.0 - a, 1.0 - p), 0.0)
