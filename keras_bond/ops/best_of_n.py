"""The Best-of-N distribution: Theorem 1 of the BOND paper (arXiv 2407.14622) and its limits without ties."""

import functools
import math

import numpy as np
from keras import ops

from keras_bond.ops._checks import as_float, check_n
from keras_bond.ops.valid import is_valid


def best_of_n_log_ratio(p_less, p_less_equal, n):
    """Log-ratio of Best-of-n to the distribution it samples from, ties included.

        log pi_BoN(y) - log pi_ref(y) = (n - 1) log p_<=(y) + log sum_{i=1..n} (p_<(y) / p_<=(y))^(i-1)

    which equals `log[(p_<=^n - p_<^n) / (p_<= - p_<)]`.

    Args:
        p_less: P[r(y') < r(y)] for y' from the reference, any shape, in [0, 1].
        p_less_equal: P[r(y') <= r(y)], the same shape, at least `p_less`.
        n: number of samples, an integer >= 1.

    Returns:
        Float tensor of the arguments' shape, in nats; -inf where `p_less_equal` is 0 and n > 1.

    Raises:
        ValueError: if `n` is not a positive integer.

    Example:

    >>> round(float(best_of_n_log_ratio(0.0, 0.25, 2)), 4)  # the worst quarter: 4 * (1/4)^2 = 1/4
    -1.3863

    Source: BOND, Theorem 1.
    """
    n = check_n(n)
    p_less, p_less_equal = as_float(p_less), as_float(p_less_equal)
    possible = p_less_equal > 0
    ratio = p_less / ops.where(possible, p_less_equal, 1.0)
    collisions = sum(ratio**i for i in range(n))  # 1 where no other sample ties, n where nothing lies below
    return (n - 1) * ops.log(p_less_equal) + ops.log(collisions) if n > 1 else ops.zeros_like(ratio)


def best_of_n_win_rate(n):
    """Win rate of Best-of-n against its base distribution without ties: n / (n + 1).

    >>> best_of_n_win_rate(2)
    0.6666666666666666
    """
    n = check_n(n)
    return n / (n + 1)


def best_of_n_kl(n):
    """KL(pi_BoN || pi_ref) = log n - (n - 1)/n in nats without ties and atoms; an upper bound otherwise.

    >>> round(best_of_n_kl(4), 3)
    0.636
    """
    n = check_n(n)
    return math.log(n) - (n - 1) / n


def best_of_n_mean_log_quantile(n):
    """E[log p_<=(y)] of Best-of-n without ties: -1/n.

    >>> best_of_n_mean_log_quantile(4)
    -0.25
    """
    n = check_n(n)
    return -1 / n


def best_of_n_weights(rewards, n):
    """The chance of each of k samples to be the best of n of them, drawn at random without replacement; ties share it.

        w_i = [C(l_i + e_i, n) - C(l_i, n)] / [e_i C(k, n)],    l_i = #{j: r_j < r_i},  e_i = #{j: r_j = r_i}

    So sum_i w_i f(y_i) is the mean of f over the best of every choice of n samples: a U-statistic, the unbiased estimate of
    least variance of E[f(y)] under Best-of-n. The weights of a prompt sum to 1.

    Args:
        rewards: (B, k); k of a prompt are those that are not NaN.
        n: an integer from 1 to k.

    Returns:
        (B, k), float32: NaN where `rewards` are, and for a whole prompt that has fewer than n others.

    Raises:
        ValueError: if `n` is out of range.

    Example:

    >>> best_of_n_weights([[0.0, 2.0, 1.0, 1.0], [0.0, 2.0, float("nan"), float("nan")]], n=2).tolist()
    [[0.0, 0.5, 0.25, 0.25], [0.0, 1.0, nan, nan]]

    Source: Hoeffding, "A Class of Statistics with Asymptotically Normal Distribution", 1948; the form is ours.
    """
    rewards = as_float(rewards)
    k = rewards.shape[1]
    n = check_n(n, most=k)
    one, others = ops.expand_dims(rewards, 2), ops.expand_dims(rewards, 1)
    below = ops.sum(ops.cast(others < one, "int32"), axis=2)
    up_to = ops.sum(ops.cast(others <= one, "int32"), axis=2)
    there = ops.sum(ops.cast(is_valid(rewards), "int32"), axis=1, keepdims=True)
    won = all_among(up_to, there, n, k) - all_among(below, there, n, k)  # by one of the equals
    return ops.where(ops.logical_and(is_valid(rewards), there >= n), won / as_float(up_to - below), float("nan"))


def all_among(count, there, n, k):
    """C(count, n) / C(there, n): the chance that n samples, drawn from `there` <= k, are all among `count` of them.

    Integer tensors that broadcast to one shape -> float32; 0 where `there` is below n.
    """
    return ops.take(as_float(_all_among(n, k)), there * (k + 1) + count)


@functools.cache
def _all_among(n, k):
    """The table of `all_among` for all numbers from 0 to k, flat."""
    chosen = [math.comb(i, n) for i in range(k + 1)]
    return np.array([c / total if c and c <= total else 0 for total in chosen for c in chosen], "float32")
