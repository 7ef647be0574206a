"""The Best-of-N distribution: Theorem 1 of the BOND paper (arXiv 2407.14622) and its limits without ties."""

import math

from keras import ops

from keras_bond.ops._checks import as_float, check_n


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
    check_n(n)
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
    check_n(n)
    return n / (n + 1)


def best_of_n_kl(n):
    """KL(pi_BoN || pi_ref) = log n - (n - 1)/n in nats without ties and atoms; an upper bound otherwise.

    >>> round(best_of_n_kl(4), 3)
    0.636
    """
    check_n(n)
    return math.log(n) - (n - 1) / n


def best_of_n_mean_log_quantile(n):
    """E[log p_<=(y)] of Best-of-n without ties: -1/n.

    >>> best_of_n_mean_log_quantile(4)
    -0.25
    """
    check_n(n)
    return -1 / n
