"""Held-out evaluation: win rate, KL and efficiency against the reference, with intervals."""

from keras_bond.evaluation.best_of_n import best_of_n_points
from keras_bond.evaluation.evaluate import Estimate, Evaluation, Evaluator, evaluate

__all__ = ["Estimate", "Evaluation", "Evaluator", "best_of_n_points", "evaluate"]
