"""The trainers: one file per algorithm over one shell."""

from keras_bond.trainers.best_of_n_sft import BestOfNSFT
from keras_bond.trainers.bond import BOND
from keras_bond.trainers.grpo import GRPO
from keras_bond.trainers.iterative_bond import IterativeBOND
from keras_bond.trainers.jbond import JBOND
from keras_bond.trainers.reinforce import Reinforce
from keras_bond.trainers.trainer import AlignmentTrainer

__all__ = ["BOND", "GRPO", "JBOND", "AlignmentTrainer", "BestOfNSFT", "IterativeBOND", "Reinforce"]
