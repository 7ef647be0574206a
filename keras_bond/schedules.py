"""Learning-rate schedules."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("keras_bond")
class LinearWarmup(keras.optimizers.schedules.LearningRateSchedule):
    """A linear rise to `learning_rate` over the first `warmup_steps` updates, constant from then on.

        lr(step) = learning_rate * min(1, (step + 1) / warmup_steps)

    Args:
        learning_rate: the final value, > 0.
        warmup_steps: updates until it is reached, >= 1.

    Example:

    >>> [round(float(LinearWarmup(1.0, 4)(step)), 2) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]

    Source: BOND, section 6: 3e-6 after 100 steps.
    """

    def __init__(self, learning_rate, warmup_steps, name="linear_warmup"):
        super().__init__()
        if not learning_rate > 0:
            raise ValueError(f"`learning_rate` must be above 0. Received: learning_rate={learning_rate}")
        if not warmup_steps >= 1:
            raise ValueError(f"`warmup_steps` must be at least 1. Received: warmup_steps={warmup_steps}")
        self.learning_rate, self.warmup_steps, self.name = learning_rate, warmup_steps, name

    def __call__(self, step):
        return self.learning_rate * ops.minimum(1.0, (ops.cast(step, "float32") + 1.0) / self.warmup_steps)

    def get_config(self):
        return {"learning_rate": self.learning_rate, "warmup_steps": self.warmup_steps, "name": self.name}
