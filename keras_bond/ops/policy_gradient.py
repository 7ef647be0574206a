"""The score-function estimator and its baseline."""

from keras import ops

from keras_bond.ops._checks import as_float
from keras_bond.ops.valid import is_valid, valid_mean


def leave_one_out_baseline(returns):
    """The mean return of the other samples.

        B_i = (sum_j R_j - R_i) / (m - 1);     0 where there is no other

    Args:
        returns: (m,), the samples of a batch; or (B, m), the m samples of each prompt, compared among themselves. NaN is a
            sample that is nobody's other.

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
    valid = ops.cast(is_valid(returns), returns.dtype)
    returns = ops.where(is_valid(returns), returns, 0.0)
    others = ops.sum(valid, axis=-1, keepdims=True) - valid
    return (ops.sum(returns, axis=-1, keepdims=True) - returns) / ops.maximum(others, 1.0)


def reinforce_loss(log_prob, returns, valid=None):
    """A loss whose gradient is the REINFORCE estimator with the leave-one-out baseline.

        grad = -mean_i[ (R_i - B_i) grad log pi(y_i) ]

    The mean and the baseline are over the samples that count. Where others are left out by their text alone, that is the
    gradient for the policy given that it does not write such text.

    Args:
        log_prob: (B,), log pi(y_i | x_i), differentiable; or (B, m), m samples of each prompt.
        returns: of the same shape; no gradient flows into them. The baseline is the mean of the others of the batch, or,
            where m samples a prompt are given, of the prompt.
        valid: of the same shape, bool: which samples count; by default those whose return is not NaN. Where none does,
            the loss is 0.

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
    valid = is_valid(returns) if valid is None else ops.convert_to_tensor(valid, "bool")
    baseline = leave_one_out_baseline(ops.where(valid, returns, float("nan")))
    return -valid_mean(ops.where(valid, returns - baseline, 0.0) * log_prob, valid)


def group_advantages(rewards, epsilon=1e-4):
    """Rewards normalised among the m samples of a prompt.

        A_i = (r_i - mean_j r_j) / (std_j r_j + epsilon),   std^2 = sum_j (r_j - mean)^2 / (m - 1)

    Args:
        rewards: (B, m), or less a constant for each prompt. NaN is a sample that has no reward, and is nobody's other.
        epsilon: > 0, in units of reward: where all rewards of a prompt are equal, the advantages are 0.

    Returns:
        (B, m): NaN where there is no reward, and where no other sample of the prompt has one.

    Example:

    >>> [round(float(a), 2) for a in group_advantages([[0.0, 0.0, 1.0, 1.0]])[0]]
    [-0.87, -0.87, 0.87, 0.87]

    Source: Shao et al., "DeepSeekMath" (arXiv 2402.03300), equation 3 and section 4.1.
    """
    rewards = as_float(rewards)
    if len(rewards.shape) != 2:
        raise ValueError(f"`rewards` must have shape (batch, m). Received: rewards.shape={tuple(rewards.shape)}")
    valid = is_valid(rewards)
    count = ops.sum(ops.cast(valid, rewards.dtype), axis=1, keepdims=True)
    mean = ops.sum(ops.where(valid, rewards, 0.0), axis=1, keepdims=True) / ops.maximum(count, 1.0)
    centred = ops.where(valid, rewards - mean, 0.0)
    variance = ops.sum(ops.square(centred), axis=1, keepdims=True) / ops.maximum(count - 1, 1.0)
    return ops.where(ops.logical_and(valid, count > 1), centred / (ops.sqrt(variance) + epsilon), float("nan"))
