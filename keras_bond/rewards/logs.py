"""What the logs of a step say of its rewards."""

from keras import ops

from keras_bond.ops import is_valid, valid_mean, win_rate

REWARD_LOGS = ("reward", "reward_std", "anchor_reward", "win_rate", "tie_rate")
"""Means over the samples that have a reward."""


def reward_logs(trajectory):
    """The metrics of a step's rewards, over the samples that have one; 0 where none has.

    Args:
        trajectory: `Trajectory`.

    Returns:
        Dict of scalars: `reward`, `reward_std`, `abstained` and, where there are anchor samples, `anchor_reward`, `win_rate`
        and `tie_rate`; see `AlignmentTrainer`.
    """
    t, (rows, k) = trajectory, trajectory.anchor_rewards.shape
    m = rows // t.prompt_ids.shape[0]
    missing = [ops.sum(ops.cast(ops.isnan(rewards), "float32")) for rewards in (t.reward, t.anchor_rewards)]
    mean = valid_mean(t.reward)
    deviation = ops.where(ops.isfinite(mean), t.reward - mean, float("inf"))
    logs = {
        "reward": mean,
        "reward_std": ops.sqrt(valid_mean(ops.square(deviation), is_valid(t.reward))),
        "abstained": (m * missing[0] + missing[1]) / (rows * (m + k)),  # each anchor sample stands there m times
    }
    if k:
        own, anchor = ops.expand_dims(t.relative_reward, 1), t.relative_anchor_rewards
        ties = ops.cast(ops.equal(own, anchor), "float32")
        logs["anchor_reward"] = valid_mean(t.anchor_rewards)
        logs["win_rate"] = valid_mean(win_rate(t.relative_reward, anchor))
        logs["tie_rate"] = valid_mean(ties, ops.logical_and(is_valid(own), is_valid(anchor)))
    return logs
