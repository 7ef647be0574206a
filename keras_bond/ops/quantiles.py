"""From rewards to quantiles under the anchor, and the rewards that BOND and J-BOND build of them.

Each function depends on rewards only through their order: a strictly increasing transform of the reward changes nothing. NaN
is a sample without a reward: it is compared with nothing, and what cannot be told for want of samples is NaN.
"""

import math

from keras import ops

from keras_bond.ops._checks import as_float, check_n, check_samples
from keras_bond.ops.best_of_n import all_among, best_of_n_log_ratio
from keras_bond.ops.valid import is_valid


def monte_carlo_quantiles(reward, anchor_rewards, smoothing=0.0):
    """Estimate p_<(y) and p_<=(y) from k anchor samples of the same prompt.

        p_<=(y) = (#{i: r(y_i) <= r(y)} + s) / (k + s),     p_<(y) = #{i: r(y_i) < r(y)} / (k + s)

    With `smoothing` s = 0 these are raw counts. s = 1 counts y itself among its equals, which keeps log p_<= finite:
    the paper gives no floor for a count of 0, and (count + 1)/(k + 1) is ours.

    Args:
        reward: (B,), rewards of the samples to place.
        anchor_rewards: (B, k), rewards of k anchor samples per prompt, of which those that are not NaN are counted.
        smoothing: s >= 0.

    Returns:
        (p_less, p_less_equal), each (B,): NaN where `reward` is, or where no anchor sample has a reward.

    Raises:
        ValueError: if the shapes do not fit or `smoothing` is negative.

    Example:

    >>> p_less, p_less_equal = monte_carlo_quantiles([0.5], [[0.1, 0.5, 0.7, 0.9]])
    >>> float(p_less[0]), float(p_less_equal[0])
    (0.25, 0.5)

    Source: BOND, section 4.1.
    """
    if smoothing < 0:
        raise ValueError(f"`smoothing` must be at least 0. Received: smoothing={smoothing}")
    reward, anchor_rewards = as_float(reward), as_float(anchor_rewards)
    check_samples(reward, anchor_rewards)
    one = ops.expand_dims(reward, 1)
    which = anchor_rewards < one, anchor_rewards <= one, is_valid(anchor_rewards)
    less, less_equal, k = (ops.sum(ops.cast(each, reward.dtype), axis=1) for each in which)
    total = ops.where(ops.logical_and(is_valid(reward), k > 0), k + smoothing, float("nan"))
    return less / total, (less_equal + smoothing) / total


def win_rate(reward, anchor_rewards):
    """Share of the anchor samples that `reward` beats, ties counting half: (p_< + p_<=) / 2, shape (B,); NaN as these.

    >>> float(win_rate([0.5], [[0.1, 0.5]])[0])
    0.75
    """
    p_less, p_less_equal = monte_carlo_quantiles(reward, anchor_rewards)
    return (p_less + p_less_equal) / 2


def bond_reward(p_less_equal, p_less=None, n=None):
    """The reward of BOND's backward KL.

        r_BOND(y) = log p_<=(y)

    or, when `p_less` and `n` are given, with the collision factor that the paper drops (ours):
    r_BOND(y) = log[(p_<=^n - p_<^n) / (p_<= - p_<)] / (n - 1), which makes the backward KL exact under ties.

    Args:
        p_less_equal: P[r(y') <= r(y)], any shape.
        p_less: P[r(y') < r(y)], the same shape, or `None`.
        n: the N of Best-of-N, at least 2, or `None`.

    Returns:
        Float tensor of the shape of `p_less_equal`, in nats.

    Example:

    >>> round(float(bond_reward(0.5)), 4)
    -0.6931

    Source: BOND, section 4.2.
    """
    if (p_less is None) != (n is None):
        raise ValueError(f"`p_less` and `n` belong together: pass both or neither. Received: p_less={p_less!r}, n={n!r}")
    if n is None:
        return ops.log(as_float(p_less_equal))
    if n < 2:
        raise ValueError(f"`n` must be at least 2. Received: n={n}")
    return best_of_n_log_ratio(p_less, p_less_equal, n) / (n - 1)


def jbond_reward(reward, anchor_rewards, n=None):
    """The reward of J-BOND: a penalty for a sample that is worse than all n anchor samples.

        r_J(y) = -2^n log 2  if r(y) < min_i r(y_i),  else 0            (n = 2: -log 16)

    From k > n anchor samples its mean over every choice of n of them: with g = #{i: r(y_i) > r(y)},

        r_J(y) = -2^n log 2  C(g, n) / C(k, n)

    which has the same expectation and less variance.

    Args:
        reward: (B,), rewards of the policy's samples.
        anchor_rewards: (B, k), rewards of the anchor's samples; k of a prompt are those that are not NaN.
        n: at most k; k by default.

    Returns:
        (B,), in nats: NaN where `reward` is, or where fewer than n anchor samples have a reward.

    Example:

    >>> [round(float(r), 4) for r in jbond_reward([0.0, 0.5], [[0.2, 0.9], [0.2, 0.9]])]
    [-2.7726, 0.0]

    Source: BOND, Algorithm 2 (n = 2); general n and k are ours, see `expected_jbond_reward`.
    """
    reward, anchor_rewards = as_float(reward), as_float(anchor_rewards)
    check_samples(reward, anchor_rewards)
    k = anchor_rewards.shape[1]
    n = k if n is None else n
    if n > k:
        raise ValueError(f"`n` must be at most {k}, the anchor samples per prompt. Received: n={n}")
    better = ops.sum(ops.cast(anchor_rewards > ops.expand_dims(reward, 1), "int32"), axis=1)
    there = ops.sum(ops.cast(is_valid(anchor_rewards), "int32"), axis=1)
    penalty = ops.where(better >= n, -(2.0**n) * math.log(2) * all_among(better, there, n, k), 0.0)
    return ops.where(ops.logical_and(is_valid(reward), there >= n), penalty, float("nan"))


def expected_jbond_reward(p_less_equal, n=2):
    """E[r_J] = -2^n log 2 (1 - p_<=)^n, which meets log p_<= at p_<= = 1/2 and at 1.

    >>> round(float(expected_jbond_reward(0.5)), 4)
    -0.6931

    Source: BOND, figure 8 (n = 2).
    """
    check_n(n)
    return -(2.0**n) * math.log(2) * (1.0 - as_float(p_less_equal)) ** n
