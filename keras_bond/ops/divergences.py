"""Sampled losses whose gradients are those of the divergences to the Best-of-n distribution."""

from keras import ops

from keras_bond.ops._checks import as_float
from keras_bond.ops.policy_gradient import reinforce_loss
from keras_bond.ops.valid import is_valid, valid_mean


def forward_kl_loss(log_prob, weights=None, anchor_log_prob=None):
    """Loss with the gradient of KL(pi_BoN || pi): the negative log-likelihood of Best-of-n samples.

        grad = -E_{y ~ pi_BoN} grad log pi(y)  ~  -sum_i w_i grad log pi(y_i)

    Weights are 1 for the best of n anchor samples, or, with less variance, `best_of_n_weights` for all k of them. What the
    policy itself gives to the same samples, by importance weights, has a score of expectation 0: E_{y ~ pi_a}[rho grad log
    pi] = E_{y ~ pi} grad log pi = 0. Given `anchor_log_prob`, the estimator has it subtracted (ours),

        -sum_i (w_i - rho_i / k) grad log pi(y_i),    rho_i = pi(y_i) / pi_a(y_i)

    so that the noise is in proportion to what is still to be learned: all rewards equal and pi = pi_a, there is none, and
    where pi is Best-of-n of the anchor, rho_i / k is what w_i estimates. Of a policy that has left its anchor far behind,
    farther than Best-of-n is from it, rho has heavy tails: let the anchor follow faster, or give no `anchor_log_prob`.

    Where samples are left out by their text alone, Best-of-n is of the anchor given that it writes no such text; and with
    `anchor_log_prob`, as far as policy and anchor write such text equally often, pi is meant so too: the left out are not
    made rarer.

    Args:
        log_prob: (B,), log pi of the best of n anchor samples of each prompt; or (B, k), of k anchor samples.
        weights: (B, k), each one's chance to be the best of n, or `None` for (B,). NaN is a sample that counts nowhere: k of
            a prompt are the others, and the mean is over the prompts that have any.
        anchor_log_prob: (B, k), log pi_a of the same samples, or `None`. No gradient flows into rho.

    Returns:
        Scalar.

    Example:

    >>> float(forward_kl_loss([-1.0, -3.0]))
    2.0
    >>> round(float(forward_kl_loss([[-1.0, -3.0]], [[1.0, 0.0]], [[-1.0, -3.0]])), 4)
    -1.0

    Source: BOND, equation 9; scores as control variates: Mohamed et al., "Monte Carlo Gradient Estimation in Machine
    Learning" (arXiv 1906.10652).
    """
    log_prob = as_float(log_prob)
    if weights is None:
        return -ops.mean(log_prob)
    weights, valid = as_float(weights), is_valid(weights)
    if anchor_log_prob is not None:
        ratio = ops.exp(ops.stop_gradient(log_prob) - as_float(anchor_log_prob))
        k = ops.sum(ops.cast(valid, weights.dtype), axis=1, keepdims=True)
        weights = weights - ratio / ops.maximum(k, 1.0)
    by_prompt = ops.sum(ops.where(valid, weights, 0.0) * log_prob, axis=1)
    return -valid_mean(by_prompt, ops.any(valid, axis=1))


def backward_kl_loss(log_prob, anchor_log_prob, bond_reward, n):
    """Loss with the gradient of KL(pi || pi_BoN), sampled from the policy.

        grad = -(n - 1) E_{y ~ pi} grad log pi(y) [ r_BOND(y) - beta_BOND log(pi(y) / pi_a(y)) - B ],
        beta_BOND = 1 / (n - 1)

    Args:
        log_prob: (B,), log pi(y | x) of the policy's own samples, differentiable.
        anchor_log_prob: (B,), log pi_a(y | x) of the same samples.
        bond_reward: (B,), log p_<=(y), or an estimate of it such as `jbond_reward`; NaN is a sample that counts nowhere.
        n: the n of Best-of-n, at least 2.

    Returns:
        Scalar.

    Raises:
        ValueError: if `n` is below 2: the Best-of-1 distribution is the anchor itself (use `kl_loss`).

    Example:

    >>> round(float(backward_kl_loss([-1.0, -2.0], [-1.0, -2.0], [0.0, -1.0], 2)), 4)
    -0.5

    Source: BOND, equations 10 to 12.
    """
    if n < 2:
        raise ValueError(f"`n` must be at least 2. Received: n={n}")
    log_prob = as_float(log_prob)
    log_ratio = ops.stop_gradient(log_prob) - as_float(anchor_log_prob)
    reward = as_float(bond_reward)
    return (n - 1) * reinforce_loss(log_prob, reward - log_ratio / (n - 1), is_valid(reward))


def kl_loss(log_prob, anchor_log_prob, valid=None):
    """Loss with the gradient of KL(pi || pi_a), sampled from the policy: descending it pulls pi towards the anchor.

        grad = E_{y ~ pi} grad log pi(y) [ log(pi(y) / pi_a(y)) - B ]

    Args:
        log_prob: (B,), log pi(y | x) of the policy's own samples, differentiable.
        anchor_log_prob: (B,), log pi_a(y | x) of the same samples.
        valid: (B,) bool, which samples count; all by default.

    Returns:
        Scalar.

    Example:

    >>> round(float(kl_loss([-1.0, -2.0], [-2.0, -2.0])), 4)
    0.5

    Source: BOND, equation 19. Algorithm 2 prints this term with the opposite sign, which would ascend the KL.
    """
    log_prob = as_float(log_prob)
    valid = ops.ones_like(log_prob, "bool") if valid is None else valid
    return reinforce_loss(log_prob, as_float(anchor_log_prob) - ops.stop_gradient(log_prob), valid)


def jeffreys_loss(forward, backward, beta=0.5):
    """The generalised Jeffreys divergence: (1 - beta) * forward + beta * backward.

    `beta` = 1 is the backward KL alone, 0 the forward KL alone.

    >>> jeffreys_loss(1.0, 3.0, beta=0.25)
    1.5

    Source: BOND, equation 13.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"`beta` must lie in [0, 1]. Received: beta={beta}")
    return (1 - beta) * forward + beta * backward
