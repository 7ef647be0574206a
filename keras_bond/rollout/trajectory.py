"""What one rollout hands to the update."""

from typing import Any, NamedTuple


class Trajectory(NamedTuple):
    """Samples of policy and anchor for a batch of B prompts, with everything that an update needs.

    P is the width of the left-padded prompts, T the completion budget, n the number of anchor samples per prompt.
    """

    prompt_ids: Any
    """(B, P) int32, left-padded: every prompt ends in column P - 1."""
    prompt_mask: Any
    """(B, P) int32, 1 at the prompt's tokens."""
    completion_ids: Any
    """(B, T) int32, the policy's sample y ~ pi."""
    completion_mask: Any
    """(B, T) bool, true up to and including the stop token."""
    best_ids: Any
    """(B, T) int32, the best of the n anchor samples."""
    best_mask: Any
    """(B, T) bool."""
    reward: Any
    """(B,) float32, r(x, y)."""
    anchor_rewards: Any
    """(B, n) float32, r(x, y_i) for y_i ~ pi_a."""
    anchor_log_prob: Any
    """(B,) float32, log pi_a(y | x) of the policy's sample, in nats."""
    reference_log_prob: Any
    """(B,) float32, log pi_ref(y | x) of the policy's sample, in nats."""
