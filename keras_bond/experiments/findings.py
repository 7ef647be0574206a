"""Does a finding of the paper hold? Intervals over seeds, and the verdict that follows from them."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from keras_bond.experiments.spec import cell_name, matches, setting_of

VERDICTS = ("holds", "does not hold", "undecided")


class Interval(NamedTuple):
    """A mean with its 95 % interval; one value has none, nor have infinite ones: NaN."""

    mean: float
    low: float
    high: float


class Comparison(NamedTuple):
    """A finding beside what the sweep says to it."""

    finding: dict
    verdict: str
    """One of `VERDICTS`."""
    difference: Interval
    """The first setting's metric less the second's, over seeds."""
    seeds: int
    why: str
    """What kept it from being decided; empty where nothing did."""


def interval(values):
    """Student's: mean +- t_{0.975, k-1} s / sqrt(k) of k values.

    >>> [round(v, 3) for v in interval([1.0, 2.0, 3.0])]  # t = 4.303, s = 1
    [2.0, -0.484, 4.484]
    """
    values, count = np.asarray(values, "float64"), len(values)
    with np.errstate(invalid="ignore", over="ignore"):  # infinity less infinity, and what is beyond the largest number
        mean = float(np.mean(values))
        if count < 2 or not np.isfinite(values).all():
            return Interval(mean, np.nan, np.nan)
        half = float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count))
    return Interval(mean, mean - half, mean + half)


def numbers(column):
    """A column of a table as float64; NaN where there is no number."""
    return pd.to_numeric(column, errors="coerce").astype("float64")


def verdict(claim, difference, margin=None):
    """What an interval of a difference says to the claim that it is `higher` or `lower` than 0, or `equal` within `margin`.

    >>> [verdict("lower", Interval(-2, -3, -1)), verdict("lower", Interval(2, 1, 3)), verdict("lower", Interval(0, -1, 1))]
    ['holds', 'does not hold', 'undecided']
    >>> [verdict("equal", Interval(0, -0.1, d), margin=0.2) for d in (0.1, 0.3)], verdict("equal", Interval(1, 0.5, 2), 0.2)
    (['holds', 'undecided'], 'does not hold')
    """
    _, low, high = difference
    holds, fails = {
        "higher": (low > 0, high < 0),
        "lower": (high < 0, low > 0),
        "equal": (-(margin or 0) <= low and high <= (margin or 0), low > (margin or 0) or high < -(margin or 0)),
    }[claim]
    return "holds" if holds else "does not hold" if fails else "undecided"


def compare(finding, cells, evaluations, keys):
    """The verdict over a finding.

    A seed's difference is that of the two settings with this seed; where the grid varies more than they name, the mean over
    the rest of it, of pairs that agree in it.

    Args:
        finding: see `spec`.
        cells: dict, name -> its place in the grid; the finished ones.
        evaluations: dict, name -> the cell's evaluation.csv as a DataFrame.
        keys: the parameters that vary, `seed` aside.

    Returns:
        `Comparison`.
    """
    others = [key for key in keys if key not in finding["compare"][0]]
    sides: list[dict[str, Any]] = [{}, {}]
    why = ""
    for side, setting in zip(sides, finding["compare"], strict=True):
        for name, place in cells.items():
            if matches(place, setting):
                value, missing = _value(finding, evaluations[name])
                why = why or missing
                if not np.isnan(value):
                    side[cell_name(setting_of(place, (*others, "seed")))] = place["seed"], value
    by_seed: dict[int, list] = {}
    for pair, (seed, value) in sides[0].items():
        if pair in sides[1]:
            by_seed.setdefault(seed, []).append(value - sides[1][pair][1])
    if not by_seed:
        nothing = Interval(np.nan, np.nan, np.nan)
        return Comparison(finding, "undecided", nothing, 0, why or "no seed is finished in both settings")
    difference = interval([np.mean(values) for values in by_seed.values()])
    if len(by_seed) == 1:
        why = why or "one seed has no interval"
    return Comparison(finding, verdict(finding["claim"], difference, finding.get("margin")), difference, len(by_seed), why)


def _value(finding, evaluation):
    """(the metric, what is wrong with it) of a cell; NaN where there is none."""
    metric, last = finding["metric"], "final"
    if metric not in evaluation:
        return np.nan, f"evaluation.csv has no column {metric}"
    column = evaluation.set_index("step")[metric]
    steps = [finding.get("at", last), *([finding["since"]] if "since" in finding else [])]
    values, why = [], ""
    for step in steps:
        if step != last and step not in column.index:
            return np.nan, f"evaluation.csv has no step {step}, but {', '.join(map(str, column.index))}"
        found = column.iloc[-1] if step == last else column[step]
        values.append(numbers(pd.Series([found]))[0])
        if not np.isfinite(values[-1]):
            why = f"{metric} is {'empty' if pd.isna(found) else found} at step {step}"
    return float(values[0] - sum(values[1:])), why
