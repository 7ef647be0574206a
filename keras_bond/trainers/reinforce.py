"""REINFORCE with a KL penalty and the leave-one-out baseline: the baseline that J-BOND is compared with."""

import keras
from keras import ops

from keras_bond._checks import check_at_least, check_not_negative
from keras_bond.anchors import FrozenAnchor
from keras_bond.ops import is_valid, reinforce_loss, valid_mean
from keras_bond.rewards import differences
from keras_bond.trainers.trainer import AlignmentTrainer


@keras.saving.register_keras_serializable("keras_bond")
class Reinforce(AlignmentTrainer):
    """Ascends E[r(y)] - beta_rl KL(pi || pi_ref) by the score function, with m samples a prompt (RLOO).

        y_1 ... y_m ~ pi,   R_i = r(y_i) - beta_rl log(pi(y_i)/pi_ref(y_i)),   B_i the mean of the prompt's other R_j
        G = -(1/m) sum_i grad log pi(y_i) [ R_i - B_i ]

    Unlike BOND it depends on the scale of the reward: `beta_rl` must be chosen for each reward. A sample without another
    of its prompt that has a reward counts nowhere.

    Args:
        policy, reward, **kwargs: see `AlignmentTrainer`.
        beta_rl: >= 0, nats to units of reward; the paper compares 0.001, 0.01, 0.1 and 1.
        num_samples: m, at least 2; the paper has 2.

    Example:

    ```python
    trainer = keras_bond.Reinforce(policy, reward, beta_rl=0.1)
    ```

    Source: BOND, section 6; Ahmadian et al., "Back to Basics", 2024.
    """

    parts: tuple[str, ...] = ("return",)
    relative = staticmethod(differences)

    def __init__(self, policy, reward, beta_rl=0.1, num_samples=2, **kwargs):
        beta_rl, num_samples = check_not_negative(beta_rl=beta_rl), check_at_least(2, num_samples=num_samples)
        super().__init__(policy, reward, anchor=FrozenAnchor(), num_anchor_samples=0, num_samples=num_samples, **kwargs)
        self.beta_rl = beta_rl

    def objective(self, scores, trajectory):
        log_ratio = ops.stop_gradient(scores.log_prob) - trajectory.reference_log_prob
        reward, relative = trajectory.reward, trajectory.relative_reward
        sides = scores.log_prob, relative - self.beta_rl * log_ratio, is_valid(relative)
        loss = reinforce_loss(*(ops.reshape(side, (-1, self.num_samples)) for side in sides))
        return loss, {"return": valid_mean(reward - self.beta_rl * log_ratio, is_valid(reward))}

    def get_config(self):
        return {**super().get_config(), "beta_rl": self.beta_rl}
