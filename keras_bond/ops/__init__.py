"""The mathematics of BOND on `keras.ops`: pure functions without variables, models or seeds."""

from keras_bond.ops.best_of_n import (
    best_of_n_kl,
    best_of_n_log_ratio,
    best_of_n_mean_log_quantile,
    best_of_n_weights,
    best_of_n_win_rate,
)
from keras_bond.ops.chunks import in_chunks, in_turns, smallest_divisor
from keras_bond.ops.divergences import backward_kl_loss, forward_kl_loss, jeffreys_loss, kl_loss
from keras_bond.ops.frontier import accuracy_kl, frontier_efficiency, frontier_kl, frontier_win_rate, kl_efficiency
from keras_bond.ops.policy_gradient import group_advantages, leave_one_out_baseline, reinforce_loss
from keras_bond.ops.quantiles import (
    bond_reward,
    expected_jbond_reward,
    jbond_reward,
    monte_carlo_quantiles,
    win_rate,
)
from keras_bond.ops.sequences import (
    completion_mask,
    draw_tokens,
    greedy_tokens,
    sequence_kl,
    sequence_log_prob,
    token_kl,
    token_log_probs,
    truncated_draw,
)
from keras_bond.ops.valid import is_valid, valid_mean

__all__ = [
    "accuracy_kl",
    "backward_kl_loss",
    "best_of_n_kl",
    "best_of_n_log_ratio",
    "best_of_n_mean_log_quantile",
    "best_of_n_weights",
    "best_of_n_win_rate",
    "bond_reward",
    "completion_mask",
    "draw_tokens",
    "expected_jbond_reward",
    "forward_kl_loss",
    "frontier_efficiency",
    "frontier_kl",
    "frontier_win_rate",
    "greedy_tokens",
    "group_advantages",
    "in_chunks",
    "in_turns",
    "is_valid",
    "jbond_reward",
    "jeffreys_loss",
    "kl_efficiency",
    "kl_loss",
    "leave_one_out_baseline",
    "monte_carlo_quantiles",
    "reinforce_loss",
    "sequence_kl",
    "sequence_log_prob",
    "smallest_divisor",
    "token_kl",
    "token_log_probs",
    "truncated_draw",
    "valid_mean",
    "win_rate",
]
