"""What the pictures show, read off the axes."""

from types import SimpleNamespace

import numpy as np
import pytest

from keras_bond.evaluation import CalibrationBin, Estimate
from keras_bond.experiments.plots import calibration_figure, held_out_figure, training_figure
from keras_bond.experiments.tables import SHOWN, estimates_table

pytestmark = pytest.mark.any_backend

POINTS = [{"n": 2, "kl": 0.19, "win_rate": 0.65, "reward": 0.3}]


def evaluation(step):
    return SimpleNamespace(estimates={name: Estimate(step / 10, step / 10 - 0.1, step / 10 + 0.2) for name in SHOWN})


PATH = [(step, evaluation(step)) for step in (0, 4, 8)]


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_an_anchor_is_drawn_where_it_is_sampled_and_moves():
    row = {"reward": 0.1, "kl_reference": 0.2}
    moving = [{"step": s, **row, "anchor_reward": 0.0, "kl_anchor": 0.1} for s in (1, 2)]
    frozen = [{"step": s, **row, "kl_anchor": 0.2} for s in (1, 2)]
    left, middle, right = training_figure(moving, PATH, POINTS, "a").axes
    assert ["anchor" in label for label in labels(left)] == [False, True, False]
    assert ["anchor" in label for label in labels(middle)] == [False, True, False]
    assert "J-BOND, held out (95 %)" in labels(right)
    left, middle, right = training_figure(frozen, PATH, POINTS, "a", "REINFORCE").axes
    assert not any("anchor" in label for label in labels(left) + labels(middle))
    assert "REINFORCE, held out (95 %)" in labels(right)


def test_each_estimate_has_a_panel():
    panels = held_out_figure(PATH, {"reward": "Reward", "kl": "KL, nats"}, "a run").axes
    assert [axes.get_title() for axes in panels] == ["Reward", "KL, nats"]
    for axes in panels:
        np.testing.assert_allclose(axes.lines[0].get_xydata(), [[0, 0], [4, 0.4], [8, 0.8]])
        low, high = axes.collections[0].get_segments()[1]
        np.testing.assert_allclose([low, high], [[4, 0.3], [4, 0.6]])


def test_calibration_is_prediction_against_count():
    parts = [CalibrationBin(5, 0.2, Estimate(0.3, 0.1, 0.4)), CalibrationBin(5, 0.7, Estimate(0.6, 0.5, 0.9))]
    (axes,) = calibration_figure(parts).axes
    np.testing.assert_allclose(axes.lines[1].get_xydata(), [[0.2, 0.3], [0.7, 0.6]])


def test_a_table_has_the_estimates_and_those_asked_for():
    result = evaluation(5)
    result.estimates["log_quantile"] = Estimate(-0.625, -0.75, -0.5)
    frame = estimates_table(result, ["log_quantile"]).data
    assert frame["figure"].tolist() == [*SHOWN, "log_quantile"]
    assert frame.iloc[-1].tolist() == ["log_quantile", -0.625, -0.75, -0.5]
