"""Held-out evaluation: win rate, KL and efficiency against the reference, with intervals; benchmarks.

`evaluation.harness`, the adapter for lm-evaluation-harness, is imported by itself: it needs that package.
"""

from keras_bond.evaluation.benchmark import ZERO_SHOT, Score, benchmark
from keras_bond.evaluation.best_of_n import best_of_n_points
from keras_bond.evaluation.calibration import CalibrationBin, calibration
from keras_bond.evaluation.estimates import UNITS, Estimate, distinct_n
from keras_bond.evaluation.evaluate import Evaluator, evaluate
from keras_bond.evaluation.samples import Evaluation, Samples, load
from keras_bond.evaluation.verified import majority, pass_at, verified

__all__ = [
    "UNITS",
    "ZERO_SHOT",
    "CalibrationBin",
    "Estimate",
    "Evaluation",
    "Evaluator",
    "Samples",
    "Score",
    "benchmark",
    "best_of_n_points",
    "calibration",
    "distinct_n",
    "evaluate",
    "load",
    "majority",
    "pass_at",
    "verified",
]
