"""The score-function estimator and its baseline."""

from keras import ops

from keras_bond.ops._checks import as_float, check_vector


def leave_one_out_baseline(returns):
    """The mean return of the other samples of the batch.

        B_i = (sum_j R_j - R_i) / (m - 1);     0 for a batch of one

    Args:
        returns: (m,).

    Returns:
        (m,).

    Example:

    >>> [float(b) for b in leave_one_out_baseline([1.0, 2.0, 6.0])]
    [4.0, 3.5, 1.5]

    Source: Kool et al., "Buy 4 REINFORCE samples, get a baseline for free!", 2019.
    """
    returns = as_float(returns)
    check_vector("returns", returns)
    others = ops.maximum(ops.shape(returns)[0] - 1, 1)
    return (ops.sum(returns) - returns) / ops.cast(others, returns.dtype)


def reinforce_loss(log_prob, returns):
    """A loss whose gradient is the REINFORCE estimator with the leave-one-out baseline.

        grad = -mean_i[ (R_i - B_i) grad log pi(y_i) ]

    Args:
        log_prob: (B,), log pi(y_i | x_i), differentiable.
        returns: (B,); no gradient flows into them.

    Returns:
        Scalar. Its value means nothing to a reader; its gradient is what counts.

    Raises:
        ValueError: if either is not a vector.

    Example:

    >>> float(reinforce_loss([-1.0, -2.0], [1.0, 0.0]))
    -0.5

    Source: Williams, 1992; BOND, section 4.2.
    """
    log_prob, returns = as_float(log_prob), ops.stop_gradient(as_float(returns))
    check_vector("log_prob", log_prob)
    check_vector("returns", returns)
    return -ops.mean((returns - leave_one_out_baseline(returns)) * log_prob)
