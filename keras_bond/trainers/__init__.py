"""The trainers: one file per algorithm over one shell."""

from keras_bond.trainers.jbond import JBOND
from keras_bond.trainers.trainer import AlignmentTrainer

__all__ = ["JBOND", "AlignmentTrainer"]
