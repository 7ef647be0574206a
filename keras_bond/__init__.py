"""Best-of-N distillation of KerasHub language models with `model.fit`: BOND and J-BOND on JAX, TensorFlow and Torch.

The names below are loaded when they are first used, so that the command line can choose a backend before Keras is imported.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "BOND",
    "GRPO",
    "JBOND",
    "AlignmentTrainer",
    "BestOfNSFT",
    "BestOfNSampler",
    "IterativeBOND",
    "Reinforce",
    "anchors",
    "callbacks",
    "checkpoints",
    "data",
    "evaluation",
    "export",
    "families",
    "ops",
    "optimizers",
    "presets",
    "quantiles",
    "rewards",
    "rollout",
    "scale",
    "schedules",
    "trainers",
]

_TRAINERS = ("BOND", "GRPO", "JBOND", "AlignmentTrainer", "BestOfNSFT", "IterativeBOND", "Reinforce")
_FROM = {**dict.fromkeys(_TRAINERS, "trainers"), "BestOfNSampler": "sampling"}

if TYPE_CHECKING:
    from keras_bond import (
        anchors,
        callbacks,
        checkpoints,
        data,
        evaluation,
        export,
        families,
        ops,
        optimizers,
        presets,
        quantiles,
        rewards,
        rollout,
        scale,
        schedules,
        trainers,
    )
    from keras_bond.sampling import BestOfNSampler
    from keras_bond.trainers import BOND, GRPO, JBOND, AlignmentTrainer, BestOfNSFT, IterativeBOND, Reinforce


def __getattr__(name):
    if name in _FROM:
        return getattr(importlib.import_module(f"keras_bond.{_FROM[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"keras_bond.{name}")
    raise AttributeError(f"module 'keras_bond' has no attribute {name!r}")


def __dir__():
    return __all__
