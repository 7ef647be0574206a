"""Held-out evaluation: win rate, KL and efficiency against the reference, with intervals."""

from keras_bond.evaluation.best_of_n import best_of_n_points
from keras_bond.evaluation.calibration import CalibrationBin, calibration
from keras_bond.evaluation.estimates import UNITS, Estimate, distinct_n
from keras_bond.evaluation.evaluate import Evaluator, evaluate
from keras_bond.evaluation.samples import Evaluation, Samples, load

__all__ = [
    "UNITS",
    "CalibrationBin",
    "Estimate",
    "Evaluation",
    "Evaluator",
    "Samples",
    "best_of_n_points",
    "calibration",
    "distinct_n",
    "evaluate",
    "load",
]
