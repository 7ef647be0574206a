"""GRPO: the group-normalised policy gradient, a baseline that many people know."""

import keras
from keras import ops

from keras_bond.ops import group_advantages, is_valid, kl_loss, valid_mean
from keras_bond.trainers.reinforce import Reinforce


@keras.saving.register_keras_serializable("keras_bond")
class GRPO(Reinforce):
    """Ascends the reward, normalised among the m samples of a prompt; one update for each rollout, so without clipping.

        y_1 ... y_m ~ pi,   A_i = (r(y_i) - mean r) / (std r + 1e-4)
        G = -(1/m) sum_i (1/|y_i|) A_i grad log pi(y_i)  +  beta_rl grad KL(pi || pi_ref)

    with |y| the tokens of a completion. The KL's gradient is the score-function estimator of `ops.kl_loss`. GRPO's own is
    another estimator of it, a token at a time. A prompt whose rewards are all equal has no gradient but the KL's.

    Args:
        policy, reward, **kwargs: see `AlignmentTrainer`.
        num_samples: m, at least 2; GRPO's usual number is 8.
        beta_rl: >= 0, weight of the KL in nats; DeepSeekMath has 0.04.

    Example:

    ```python
    trainer = keras_bond.GRPO(policy, reward, num_samples=8)
    ```

    Source: Shao et al., "DeepSeekMath" (arXiv 2402.03300).
    """

    parts = ("advantage_loss", "regularizer")

    def __init__(self, policy, reward, beta_rl=0.04, num_samples=8, **kwargs):
        super().__init__(policy, reward, beta_rl=beta_rl, num_samples=num_samples, **kwargs)

    def objective(self, scores, trajectory):
        advantages = ops.reshape(group_advantages(ops.reshape(trajectory.relative_reward, (-1, self.num_samples))), (-1,))
        length = ops.sum(ops.cast(trajectory.completion_mask, "float32"), axis=1)
        valid = is_valid(advantages)
        gain = ops.where(valid, advantages, 0.0) * scores.log_prob / length
        loss, regularizer = -valid_mean(gain, valid), kl_loss(scores.log_prob, trajectory.reference_log_prob, valid)
        return loss + self.beta_rl * regularizer, {"advantage_loss": loss, "regularizer": regularizer}
