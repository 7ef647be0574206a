"""The score-function estimator and its baseline."""

from keras import ops

from keras_bond.ops._checks import as_float


def leave_one_out_baseline(returns):
    """The mean return of the other samples.

        B_i = (sum_j R_j - R_i) / (m - 1);     0 where there is no other

    Args:
        returns: (m,), the samples of a batch; or (B, m), the m samples of each prompt, compared among themselves.

    Returns:
        The shape of `returns`.

    Example:

    >>> [float(b) for b in leave_one_out_baseline([1.0, 2.0, 6.0])]
    [4.0, 3.5, 1.5]

    Source: Kool et al., "Buy 4 REINFORCE samples, get a baseline for free!", 2019.
    """
    returns = as_float(returns)
    if len(returns.shape) not in (1, 2):
        raise ValueError(f"`returns` must have shape (m,) or (batch, m). Received: returns.shape={tuple(returns.shape)}")
    others = ops.maximum(ops.shape(returns)[-1] - 1, 1)
    return (ops.sum(returns, axis=-1, keepdims=True) - returns) / ops.cast(others, returns.dtype)


def reinforce_loss(log_prob, returns):
    """A loss whose gradient is the REINFORCE estimator with the leave-one-out baseline.

        grad = -mean_i[ (R_i - B_i) grad log pi(y_i) ]

    Args:
        log_prob: (B,), log pi(y_i | x_i), differentiable; or (B, m), m samples of each prompt.
        returns: of the same shape; no gradient flows into them. The baseline is the mean of the others of the batch, or,
            where m samples a prompt are given, of the prompt.

    Returns:
        Scalar. Its value means nothing to a reader; its gradient is what counts.

    Raises:
        ValueError: if the shapes differ, or are not (B,) or (B, m).

    Example:

    >>> float(reinforce_loss([-1.0, -2.0], [1.0, 0.0]))
    -0.5

    Source: Williams, 1992; BOND, section 4.2.
    """
    log_prob, returns = as_float(log_prob), ops.stop_gradient(as_float(returns))
    if tuple(log_prob.shape) != tuple(returns.shape):
        raise ValueError(
            "`log_prob` and `returns` must have the same shape. "
            f"Received: log_prob.shape={tuple(log_prob.shape)}, returns.shape={tuple(returns.shape)}"
        )
    return -ops.mean((returns - leave_one_out_baseline(returns)) * log_prob)
