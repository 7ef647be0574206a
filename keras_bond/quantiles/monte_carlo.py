"""Quantiles by counting anchor samples."""

import keras

from keras_bond._checks import check_at_least, check_number
from keras_bond.ops import monte_carlo_quantiles


@keras.saving.register_keras_serializable("keras_bond")
class MonteCarlo:
    """p_<=(y) = (#{i: r(y_i) <= r(y)} + s) / (k + s), from k anchor samples y_i of the same prompt.

    Args:
        num_samples: k, at least 1; the paper trains with 16. The Best-of-N sample is the best of the first N of them.
        smoothing: s >= 0. The default 1 counts y among its equals, so that log p_<= is finite where no sample is as bad;
            the paper gives no floor for a count of 0.

    Example:

    ```python
    keras_bond.BOND(policy, reward, n=8, quantiles=keras_bond.quantiles.MonteCarlo(16))
    ```

    Source: BOND, section 4.1.
    """

    def __init__(self, num_samples=16, smoothing=1.0):
        self.num_samples = check_at_least(1, num_samples=num_samples)
        self.smoothing = check_number("be above 0, or log p_<= may be infinite", lambda s: s > 0, smoothing=smoothing)

    def follow(self, policy):
        """Nothing is learned: nothing follows."""

    def __call__(self, trajectory):
        """(p_less, p_less_equal), each (R,), of the policy's samples."""
        of_anchor = trajectory.relative_anchor_rewards[:, : self.num_samples]
        return monte_carlo_quantiles(trajectory.relative_reward, of_anchor, self.smoothing)

    def observe(self, trajectory):
        """Nothing is learned from it."""

    @property
    def variables(self):
        return []

    def get_config(self):
        return {"num_samples": self.num_samples, "smoothing": self.smoothing}

    @classmethod
    def from_config(cls, config):
        return cls(**config)
