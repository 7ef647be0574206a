"""What the logs of a step say of its rewards."""

from keras import ops

from keras_bond.ops import win_rate


def reward_logs(trajectory):
    """Scalars by metric name: `reward`, `reward_std` and, where there are anchor samples, `anchor_reward`, `win_rate` and
    `tie_rate`; see `AlignmentTrainer`."""
    own, anchor = trajectory.reward, trajectory.anchor_rewards
    logs = {"reward": ops.mean(own), "reward_std": ops.std(own)}
    if anchor.shape[1]:
        own, of_anchor = trajectory.relative_reward, trajectory.relative_anchor_rewards
        logs["anchor_reward"] = ops.mean(anchor)
        logs["win_rate"] = ops.mean(win_rate(own, of_anchor))
        logs["tie_rate"] = ops.mean(ops.cast(ops.equal(ops.expand_dims(own, 1), of_anchor), "float32"))
    return logs
