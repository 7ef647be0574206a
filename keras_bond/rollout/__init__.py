"""Rollouts: compiled sampling and scoring with the weights as arguments, and what they return."""

from keras_bond.data import Table as PromptTable  # its name of before
from keras_bond.rollout.devices import batch_devices, check_rows, process_share, replicas, spread_rows
from keras_bond.rollout.functional import Program, Recorded, Weights, using, weights_of
from keras_bond.rollout.groups import Groups, group
from keras_bond.rollout.rollout import Completions, Rollout
from keras_bond.rollout.trajectory import Scores, Trajectory, tokens_of

__all__ = [
    "Completions",
    "Groups",
    "Program",
    "PromptTable",
    "Recorded",
    "Rollout",
    "Scores",
    "Trajectory",
    "Weights",
    "batch_devices",
    "check_rows",
    "group",
    "process_share",
    "replicas",
    "spread_rows",
    "tokens_of",
    "using",
    "weights_of",
]
