"""The pictures."""

import numpy as np
from keras import ops
from matplotlib.figure import Figure

from keras_bond.ops import frontier_win_rate

BLUE, ORANGE, GREY = "#2b6cb0", "#c05621", "#718096"


def training_figure(steps, path, points, title):
    """Reward and KL against the step, and win rate against KL under the frontier.

    Args:
        steps: list of dicts, one per update, with `step`, `reward`, `anchor_reward`, `kl_reference`, `kl_anchor`.
        path: list of (step, `Evaluation`) along the run, held out; the last one is the result.
        points: Best-of-N: list of dicts with `n`, `kl`, `win_rate`, `reward`.
        title: of the picture.

    Returns:
        A matplotlib `Figure`.
    """
    figure = Figure(figsize=(15, 4.8), layout="constrained")
    figure.suptitle(title)
    left, middle, right = figure.subplots(1, 3)
    step = np.array([row["step"] for row in steps])
    evaluated = [s for s, _ in path]

    for name, colour, label in (("reward", BLUE, "policy, training batches"), ("anchor_reward", GREY, "anchor")):
        _smoothed(left, step, [row[name] for row in steps], colour, label)
    _estimates(left, evaluated, [e.estimates["reward"] for _, e in path])
    for point in points:
        left.axhline(point["reward"], color=GREY, linewidth=0.8, linestyle=":")
        _note(left, f"Best-of-{point['n']}", (step[-1], point["reward"]), ha="right", va="bottom")
    left.set(xlabel="update", ylabel="reward", title="Reward")

    for name, colour, label in (("kl_reference", BLUE, "to the reference, training"), ("kl_anchor", GREY, "to the anchor")):
        _smoothed(middle, step, [row[name] for row in steps], colour, label)
    _estimates(middle, evaluated, [e.estimates["kl"] for _, e in path])
    middle.set(xlabel="update", ylabel="KL (nats per completion)", title="KL")

    widest = max([e.estimates["kl"].high for _, e in path] + [point["kl"] for point in points])
    kl = np.linspace(0, 1.08 * widest, 200)
    right.plot(
        kl,
        ops.convert_to_numpy(frontier_win_rate(kl.astype("float32"))),
        color="black",
        label="frontier: no policy is above",
    )
    right.scatter([p["kl"] for p in points], [p["win_rate"] for p in points], color=GREY, marker="s", zorder=3)
    for point in points:
        place = (point["kl"], point["win_rate"])
        _note(right, f"Best-of-{point['n']}", place, xytext=(6, -10), textcoords="offset points")
    kls, wins = ([e.estimates[name] for _, e in path] for name in ("kl", "win_rate"))
    right.errorbar(
        [k.value for k in kls],
        [w.value for w in wins],
        xerr=_bars(kls),
        yerr=_bars(wins),
        color=ORANGE,
        marker="o",
        markersize=4,
        linewidth=1.2,
        elinewidth=0.8,
        label="J-BOND, held out (95 %)",
    )
    right.axhline(0.5, color=GREY, linewidth=0.6)
    right.set(xlabel="KL to the reference (nats)", ylabel="win rate against the reference", title="Win rate against KL")

    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="upper left" if axes is not right else "lower right")
    return figure


def _smoothed(axes, x, y, colour, label, window=15):
    y = np.asarray(y, "float64")
    axes.plot(x, y, color=colour, alpha=0.2, linewidth=0.8)
    window = min(window, len(y))
    mean = np.convolve(y, np.ones(window) / window, mode="valid")
    axes.plot(x[window - 1 :], mean, color=colour, linewidth=1.6, label=f"{label} (mean of {window})")


def _bars(estimates):
    return np.array([[e.value - e.low, e.high - e.value] for e in estimates]).T


def _estimates(axes, x, estimates):
    style = {"color": ORANGE, "marker": "o", "markersize": 4, "linewidth": 0, "elinewidth": 1}
    axes.errorbar(x, [e.value for e in estimates], yerr=_bars(estimates), label="held out (95 %)", **style)


def _note(axes, text, place, **kwargs):
    axes.annotate(text, place, color=GREY, fontsize=8, **kwargs)
