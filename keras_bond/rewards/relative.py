"""From rewards in float64 to what an update needs of them in float32: how the samples of a prompt compare.

NaN stays NaN: a sample whose reward abstained, which is compared with nothing.
"""

import numpy as np

from keras_bond.ops import best_of_n_weights
from keras_bond.rewards.reward import RewardError


def ranks(rewards):
    """How many samples of its prompt each one beats: small whole numbers with the order, and the ties, of the rewards.

    Args:
        rewards: (B, s) float64, s samples for each prompt.

    Returns:
        (B, s) float32.

    Example:

    >>> ranks(np.array([[1e9 - 1, 1e9 - 2, 1e9 - 1]])).tolist()
    [[1.0, 0.0, 1.0]]
    """
    worse = (rewards[:, None] < rewards[:, :, None]).sum(axis=2)
    return np.where(np.isnan(rewards), np.nan, worse).astype("float32")


def differences(rewards):
    """Each reward less the mean of its prompt's: for algorithms that need values, of which the baseline takes the rest.

    Args:
        rewards: (B, s) float64, s samples for each prompt.

    Returns:
        (B, s) float32: NaN also for the only sample of a prompt that has a reward.

    Raises:
        RewardError: if a difference is not finite.

    Example:

    >>> differences(np.array([[1e9 - 1, 1e9 - 2]])).tolist()
    [[0.5, -0.5]]
    """
    valid = ~np.isnan(rewards)
    count = valid.sum(axis=1, keepdims=True)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = np.where(valid, rewards, 0).sum(axis=1, keepdims=True) / np.maximum(count, 1)
        values = (rewards - mean).astype("float32")
    if not np.isfinite(values[valid]).all():
        raise RewardError(
            "The values of the rewards are used, not their order alone: they must be finite, and closer together than "
            f"float32 can tell, 3e38. Received: rewards from {rewards[valid].min()} to {rewards[valid].max()}"
        )
    return np.where(count > 1, values, np.float32(np.nan))


def compare(rewards, num_samples, num_anchor_samples, relative=ranks):
    """The rewards of a batch of B prompts as `Trajectory` has them.

    Args:
        rewards: (B m + B k,) float64: of the policy's m samples a prompt, then of the anchor's k.
        num_samples, num_anchor_samples: m and k.
        relative: `ranks` or `differences`.

    Returns:
        Dict with `reward`, `relative_reward` (B m,), `anchor_rewards` and `relative_anchor_rewards` (B m, k), in float32.
    """
    m, k = num_samples, num_anchor_samples
    count = len(rewards) // (m + k)
    own, anchor = np.split(rewards, [count * m])
    by_prompt = np.concatenate([own.reshape(count, m), anchor.reshape(count, k)], axis=1)
    with np.errstate(over="ignore"):
        fields = {"": by_prompt.astype("float32"), "relative_": relative(by_prompt)}
    of_policy = {f"{name}reward": values[:, :m].ravel() for name, values in fields.items()}
    of_anchor = {f"{name}anchor_rewards": np.repeat(values[:, m:], m, axis=0) for name, values in fields.items()}
    return of_policy | of_anchor


def imitated(anchor_rewards, n, every=True):
    """Which anchor samples the forward term imitates, and with what weights.

    Args:
        anchor_rewards: (B, k), of k anchor samples for each prompt.
        n: of Best-of-n.
        every: whether all k count, by their chance to be the best of n (`ops.best_of_n_weights`); or the best of the first
            n alone that have a reward, the first of equals, with weight 1.

    Returns:
        (rows, weights): the rows (B C,) among the B k samples, and (B, C), with C = k or 1; weights are NaN where a sample
        has no reward, and for a prompt where fewer than n have one.
    """
    count, k = anchor_rewards.shape
    if every or not k:
        return np.arange(count * k), best_of_n_weights(anchor_rewards, n) if k else anchor_rewards
    valid = ~np.isnan(anchor_rewards)
    first = valid & (valid.cumsum(axis=1) <= n)
    best = np.where(first, anchor_rewards, -np.inf).argmax(axis=1)
    enough = valid.sum(axis=1, keepdims=True) >= n
    return k * np.arange(count) + best, np.where(enough, np.float32(1), np.float32(np.nan))
