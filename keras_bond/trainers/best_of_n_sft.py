"""Best-of-N supervised fine-tuning: the forward KL alone."""

import keras

from keras_bond._checks import check_at_least
from keras_bond.anchors import FrozenAnchor
from keras_bond.ops import forward_kl_loss
from keras_bond.trainers.trainer import AlignmentTrainer


@keras.saving.register_keras_serializable("keras_bond")
class BestOfNSFT(AlignmentTrainer):
    """Imitates Best-of-N samples of the reference: descends KL(pi_BoN || pi).

        y_best the best of y_1 ... y_N ~ pi_ref,     G = -grad log pi(y_best)

    One sample of the policy a prompt is drawn as well, for the logs alone.

    Args:
        policy, reward, **kwargs: see `AlignmentTrainer`.
        n: the N of Best-of-N, at least 2.

    Example:

    ```python
    trainer = keras_bond.BestOfNSFT(policy, reward, n=8)
    ```
    """

    parts = ("forward_loss",)

    def __init__(self, policy, reward, n=4, **kwargs):
        n = check_at_least(2, n=n)
        super().__init__(policy, reward, anchor=FrozenAnchor(), num_anchor_samples=n, **kwargs)
        self.n = n

    def objective(self, scores, trajectory):
        forward = forward_kl_loss(scores.contender_log_prob, trajectory.contender_weights, scores.contender_anchor_log_prob)
        return forward, {"forward_loss": forward}

    def get_config(self):
        return {**super().get_config(), "n": self.n}
