"""Learning-rate schedules."""

import keras
from keras import ops

from keras_bond._checks import check_at_least


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


@keras.saving.register_keras_serializable("keras_bond")
class PerUpdate(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that counts updates where an update's gradient is accumulated over several steps.

        lr(step) = schedule(step // steps)

    Keras asks a schedule with the number of steps. Trainers wrap a schedule in this one when their optimizer accumulates.

    Args:
        schedule: a `LearningRateSchedule`.
        steps: the optimizer's `gradient_accumulation_steps`.

    Example:

    >>> round(float(PerUpdate(LinearWarmup(1.0, 4), steps=2)(3)), 2)
    0.5
    """

    def __init__(self, schedule, steps, name="per_update"):
        super().__init__()
        self.schedule, self.steps, self.name = schedule, check_at_least(1, steps=steps), name

    def __call__(self, step):
        return self.schedule(step // self.steps)

    def get_config(self):
        return {"schedule": keras.saving.serialize_keras_object(self.schedule), "steps": self.steps, "name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "schedule": keras.saving.deserialize_keras_object(config["schedule"])})


def count_updates(optimizer):
    """Let the schedule of `optimizer` count updates, where it accumulates the gradients of several steps into one."""
    rate, steps = optimizer._learning_rate, optimizer.gradient_accumulation_steps
    if steps and isinstance(rate, keras.optimizers.schedules.LearningRateSchedule) and not isinstance(rate, PerUpdate):
        optimizer.learning_rate = PerUpdate(rate, steps)
