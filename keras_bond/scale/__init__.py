"""Beyond one device, on JAX: how a policy is laid out over a mesh, and what a step costs on a TPU topology."""

import keras

if keras.config.backend() != "jax":
    raise ValueError(
        f"keras_bond.scale needs JAX: set KERAS_BACKEND to jax before Keras is imported. Received: {keras.config.backend()}"
    )

from keras_bond.scale.abstract import abstract
from keras_bond.scale.configurations import CONFIGURATIONS, make_policy
from keras_bond.scale.layouts import layout_map
from keras_bond.scale.programs import trace_step
from keras_bond.scale.report import step_report
from keras_bond.scale.table import report_lines

__all__ = ["CONFIGURATIONS", "abstract", "layout_map", "make_policy", "report_lines", "step_report", "trace_step"]
