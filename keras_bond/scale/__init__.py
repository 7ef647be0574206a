"""Beyond one device, on JAX: how a policy is laid out over a mesh, and what a step costs on a TPU topology."""

import keras

if keras.config.backend() != "jax":
    raise ValueError(
        f"keras_bond.scale needs JAX: set KERAS_BACKEND to jax before Keras is imported. Received: {keras.config.backend()}"
    )

from keras_bond.scale.abstract import abstract
from keras_bond.scale.layouts import layout_map
from keras_bond.scale.programs import lower_step

__all__ = ["abstract", "layout_map", "lower_step"]
