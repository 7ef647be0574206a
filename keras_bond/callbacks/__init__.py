"""Callbacks for `fit`."""

from keras_bond.callbacks.checkpoint import Checkpoint
from keras_bond.callbacks.evaluate_every import EvaluateEvery
from keras_bond.callbacks.keeping import KeepBest, KLBudget
from keras_bond.callbacks.sample_table import SampleTable
from keras_bond.callbacks.step_logger import StepLogger

__all__ = ["Checkpoint", "EvaluateEvery", "KLBudget", "KeepBest", "SampleTable", "StepLogger"]
