"""What the pictures show, read off the axes."""

import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from keras_bond.evaluation import CalibrationBin, Estimate
from keras_bond.experiments.plots import (
    against_kl_figure,
    against_step_figure,
    calibration_figure,
    held_out_figure,
    training_figure,
)
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


def test_a_users_words_are_no_formula():
    """`$x_$` would be one that cannot be read, and `$x$` one that loses its dollars."""
    word = "$x_$ and $x$"
    rows = [{"step": s, "reward": 0.1, "kl_reference": 0.2, "kl_anchor": 0.1} for s in (1, 2)]
    table = held_out({("kl", 0): 0, ("kl", 9): 1, (word, 0): 1, (word, 9): 2})
    for figure in (
        training_figure(rows, PATH, POINTS, word, word),
        held_out_figure(PATH, {"reward": word}, word),
        against_step_figure([(None, table)], word, word),
        against_kl_figure([table], word, word),
    ):
        texts = [text for text in figure.findobj(Text) if "$" in text.get_text()]
        assert texts
        assert not any(text.get_parse_math() for text in texts)
        figure.draw_without_rendering()


def test_what_is_infinite_or_missing_is_not_drawn():
    means = {0: 1.0, 3: np.inf, 6: np.nan, 9: 2.0, 12: -np.inf}
    table = held_out({(metric, step): mean for metric in ("reward", "kl") for step, mean in means.items()})
    batches = np.array([[1, 0.5], [2, np.inf], [3, np.nan], [4, 1e9]])
    nothing = held_out({("reward", 0): np.inf, ("kl", 0): np.nan})
    with warnings.catch_warnings(action="error"):
        for settings in ([(batches, table), (None, nothing)], [(None, nothing)], [(None, held_out({}))]):
            tables = [each for _, each in settings]
            for figure in (
                against_step_figure(settings, "reward", "Reward"),
                against_kl_figure(tables, "win_rate", "Win rate", [{"n": 2, "kl": 0.2, "win_rate": 0.6}]),
            ):
                figure.draw_without_rendering()
                assert all(np.isfinite(axes.get_ylim()).all() for axes in figure.axes)
    (axes,) = against_step_figure([(None, table)], "reward", "Reward").axes
    np.testing.assert_equal(axes.lines[0].get_ydata().astype("float64"), [1, np.nan, np.nan, 2, np.nan])
    assert 0.5 <= axes.get_ylim()[0] < 1 < 2 < axes.get_ylim()[1] <= 2.5


def held_out(means):
    """As `report` makes it: no interval, since there is one seed."""
    index = pd.MultiIndex.from_tuples(means, names=["metric", "step"])
    rows = [{"seeds": 1, "mean": mean, "low": np.nan, "high": np.nan} for mean in means.values()]
    return pd.DataFrame(rows, index=index, columns=["seeds", "mean", "low", "high"])
