"""What one rollout hands to the reward and to the update."""

from typing import Any, NamedTuple

import keras
from keras import ops


class Trajectory(NamedTuple):
    """Samples of policy and anchor for a batch of B prompts, with everything that an update needs.

    P is the width of the left-padded prompts, T the completion budget, m the number of policy samples per prompt, k that of
    anchor samples. The policy's samples stand in R = B m rows, the m samples of a prompt next to each other; likewise in
    B C rows the C anchor samples a prompt that may be imitated. A reward of NaN is that of a sample whose reward abstained:
    it counts nowhere.
    """

    prompt_ids: Any
    """(B, P) int32, left-padded: every prompt ends in column P - 1."""
    prompt_mask: Any
    """(B, P) int32, 1 at the prompt's tokens."""
    completion_ids: Any
    """(R, T) int32, the policy's samples y ~ pi."""
    completion_mask: Any
    """(R, T) bool, true up to and including the stop token."""
    contender_ids: Any
    """(B C, T) int32, anchor samples: all k of each prompt, or the best of n alone (C = 1); C = 0 where none are drawn."""
    contender_mask: Any
    """(B C, T) bool."""
    contender_weights: Any
    """(B, C) float32, each one's chance to be the best of n; the C of a prompt sum to 1. NaN where a sample has no reward,
    and for a prompt with fewer than n that have one."""
    reward: Any
    """(R,) float32, r(x, y), for the logs."""
    anchor_rewards: Any
    """(R, k) float32, r(x, y_i) for the y_i ~ pi_a of the row's prompt, for the logs."""
    relative_reward: Any
    """(R,) float32, what the update takes for r(x, y): how many of the prompt's m + k samples are worse; or, where values
    are needed, the reward less their mean. It was told in float64."""
    relative_anchor_rewards: Any
    """(R, k) float32, the same of the y_i of the row's prompt."""
    anchor_log_prob: Any
    """(R,) float32, log pi_a(y | x) of the policy's samples, in nats."""
    reference_log_prob: Any
    """(R,) float32, log pi_ref(y | x) of the policy's samples, in nats."""
    real: Any = None
    """(R,) bool: the others fill up a batch for the devices, and count nowhere; `None` where all are real."""
    p_less: Any = None
    """(R,) float32, estimate of P[r(x, y') < r(x, y)] for y' ~ pi_a; `None` where the algorithm asks for no quantiles."""
    p_less_equal: Any = None
    """(R,) float32, estimate of P[r(x, y') <= r(x, y)]; NaN where it has none."""
    groups: Any = None
    """`Groups`: the same samples in groups of like length, each prompt's own before its contenders; `None` where the batch
    is scored as a whole."""

    def map(self, function):
        """The trajectory with `function` of each array that is there."""
        return Trajectory(*(field if field is None else keras.tree.map_structure(function, field) for field in self))

    def rows(self):
        """How many samples of the policy count."""
        return self.reward.shape[0] if self.real is None else ops.sum(ops.cast(self.real, "int32"))


class Scores(NamedTuple):
    """What the policy says of a trajectory: differentiable, in nats."""

    log_prob: Any
    """(R,) float32, log pi(y | x) of the policy's samples."""
    contender_log_prob: Any
    """(B, C) float32, log pi(y_i | x) of the contenders."""
    contender_anchor_log_prob: Any = None
    """(B, C) float32, log pi_a(y_i | x) of the contenders, without a gradient; `None` for the plain estimator."""


def tokens_of(completions):
    """The tokens of `Completions`, each up to and including its stop token: B lists of int, for a reward."""
    token_ids, mask = (ops.convert_to_numpy(field) for field in (completions.token_ids, completions.mask))
    return [row[:length] for row, length in zip(token_ids.tolist(), mask.sum(axis=1).tolist(), strict=True)]
