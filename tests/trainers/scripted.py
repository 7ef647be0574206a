"""Trainers whose random numbers come from NumPy, hence are the same on every backend."""

import functools

import keras
import numpy as np
from keras import ops

from keras_bond import JBOND


class Scripted:
    rng = None

    def draw(self, batch_size):
        draw = super().draw(batch_size)
        policy, anchor = (
            ops.convert_to_tensor(self.rng.random((batch_size, samples, self.rollout.max_completion_length), "float32"))
            for samples in (self.num_samples, self.num_anchor_samples)
        )
        return draw._replace(policy_uniforms=policy, anchor_uniforms=anchor)


@functools.cache
def scripted(algorithm):
    return type(f"Scripted{algorithm.__name__}", (Scripted, algorithm), {})


def make(policy, reward, rng_seed=0, optimizer=None, algorithm=JBOND, **kwargs):
    trainer = scripted(algorithm)(policy, reward, **{"max_prompt_length": 4, "max_completion_length": 3, **kwargs})
    trainer.rng = np.random.default_rng(rng_seed)
    trainer.compile(optimizer or keras.optimizers.SGD(1.0))
    return trainer
