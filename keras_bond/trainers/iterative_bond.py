"""Iterative BOND: Algorithm 1 of "BOND: Aligning LLMs with Best-of-N Distillation" (arXiv 2407.14622)."""

import keras

from keras_bond.anchors import PeriodicAnchor
from keras_bond.trainers.bond import BOND


@keras.saving.register_keras_serializable("keras_bond")
class IterativeBOND(BOND):
    """BOND whose anchor becomes the policy every `period` updates.

        pi_0 = pi_a = pi_ref;   repeat: distil Best-of-n of the anchor into the policy for `period` updates; pi_a <- pi

    After t exact distillations the policy is Best-of-n^t of the reference: no N has to be chosen beforehand.

    Args:
        policy, reward, n, beta, quantiles, exact_ties, **kwargs: see `BOND`.
        period: updates between two moves of the anchor, at least 1; the paper has 1000.

    Example:

    ```python
    trainer = keras_bond.IterativeBOND(policy, reward, n=2, period=1000)
    ```
    """

    def __init__(self, policy, reward, n=2, period=1000, **kwargs):
        super().__init__(policy, reward, n=n, anchor=PeriodicAnchor(period), **kwargs)
        self.period = self.anchor.period

    def get_config(self):
        config = super().get_config()
        del config["anchor"]
        return {**config, "period": self.period}
