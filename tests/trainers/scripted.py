"""A J-BOND whose random numbers come from NumPy, hence are the same on every backend."""

import numpy as np
from keras import ops

from keras_bond import JBOND


class ScriptedJBOND(JBOND):
    rng = None

    def draw(self, batch_size):
        draw = super().draw(batch_size)
        shapes = ((batch_size, self.rollout.max_completion_length),)
        shapes += ((self.num_anchor_samples, *shapes[0]),)
        policy, anchor = (ops.convert_to_tensor(self.rng.random(shape, "float32")) for shape in shapes)
        return draw._replace(policy_uniforms=policy, anchor_uniforms=anchor)


def make(policy, reward, rng_seed=0, optimizer=None, **kwargs):
    import keras

    trainer = ScriptedJBOND(policy, reward, **{"max_prompt_length": 4, "max_completion_length": 3, **kwargs})
    trainer.rng = np.random.default_rng(rng_seed)
    trainer.compile(optimizer or keras.optimizers.SGD(1.0))
    return trainer
