"""Aligned models for other programs: a folder that `transformers` loads, or the LoRA adapter alone for `peft`."""

from keras_bond.export.folders import to_peft, to_transformers

__all__ = ["to_peft", "to_transformers"]
