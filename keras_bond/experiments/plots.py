"""The pictures."""

import matplotlib
import numpy as np
from keras import ops
from matplotlib import font_manager
from matplotlib.figure import Figure

from keras_bond import tabular
from keras_bond.ops import best_of_n_kl, best_of_n_win_rate, expected_jbond_reward, frontier_win_rate

BLUE, ORANGE, GREY = "#2b6cb0", "#c05621", "#718096"
COLOURS = (BLUE, ORANGE, "#2f855a", "#6b46c1", "#b7791f", "#0987a0", "#b83280")
PLAIN_TEXT = {"text.parse_math": False, "text.usetex": False}
"""For figures that show a user's words, in which two dollar signs are no formula."""


@matplotlib.rc_context(PLAIN_TEXT)
def training_figure(steps, path, points, title, name="J-BOND"):
    """Reward and KL against the step, and win rate against KL under the frontier.

    Args:
        steps: list of dicts, one per update, with `step`, `reward`, `kl_reference`, `kl_anchor`, and `anchor_reward` where
            the anchor is sampled. An anchor that never moves is the reference, and its KL is not drawn twice.
        path: list of (step, `Evaluation`) along the run, held out; the last one is the result.
        points: Best-of-N: list of dicts with `n`, `kl`, `win_rate`, `reward`.
        title: of the picture.
        name: of the algorithm.

    Returns:
        A matplotlib `Figure`.
    """
    figure = Figure(figsize=(15, 4.8), layout="constrained")
    figure.suptitle(title)
    left, middle, right = figure.subplots(1, 3)
    step = np.array([row["step"] for row in steps])
    evaluated = [s for s, _ in path]

    for column, colour, label in (("reward", BLUE, "policy, training batches"), ("anchor_reward", GREY, "anchor")):
        if column in steps[0]:
            _smoothed(left, step, [row[column] for row in steps], colour, label)
    _estimates(left, evaluated, [e.estimates["reward"] for _, e in path])
    for point in points:
        left.axhline(point["reward"], color=GREY, linewidth=0.8, linestyle=":")
        _note(left, f"Best-of-{point['n']}", (step[0], point["reward"]), ha="left", va="bottom")
    low, high = left.get_ylim()
    left.set(xlabel="update", ylabel="reward", title="Reward", ylim=(low, high + 0.2 * (high - low)))  # for the legend

    _smoothed(middle, step, [row["kl_reference"] for row in steps], BLUE, "to the reference, training")
    if any(row["kl_anchor"] != row["kl_reference"] for row in steps):
        _smoothed(middle, step, [row["kl_anchor"] for row in steps], GREY, "to the anchor")
    _estimates(middle, evaluated, [e.estimates["kl"] for _, e in path])
    middle.set(xlabel="update", ylabel="KL (nats per completion)", title="KL")

    widest = max([e.estimates["kl"].high for _, e in path] + [point["kl"] for point in points])
    _frontier(right, 1.08 * widest, points)
    kls, wins = ([e.estimates[metric] for _, e in path] for metric in ("kl", "win_rate"))
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
        label=f"{name}, held out (95 %)",
    )
    for axes in (left, middle, right):
        _finish(axes, "upper left" if axes is not right else "lower right")
    return figure


@matplotlib.rc_context(PLAIN_TEXT)
def held_out_figure(path, metrics, title):
    """Estimates of the held-out evaluations against the step, a panel for each.

    Args:
        path: list of (step, `Evaluation`): `Run.path`.
        metrics: dict, name of an estimate -> what its panel says.
        title: of the picture.

    Returns:
        A matplotlib `Figure`.
    """
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    figure.suptitle(title)
    for axes, (metric, label) in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics.items(), strict=True):
        steps, estimates = [step for step, _ in path], [evaluation.estimates[metric] for _, evaluation in path]
        axes.plot(steps, [e.value for e in estimates], color=ORANGE, linewidth=1.2)
        _estimates(axes, steps, estimates)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="update", title=label)
        _finish(axes)
    return figure


def calibration_figure(parts):
    """Predicted against empirical quantiles; on the diagonal, they agree.

    Args:
        parts: list of `CalibrationBin`.

    Returns:
        A matplotlib `Figure`.
    """
    figure, axes = _panel()
    predicted, empirical = [part.predicted for part in parts], [part.empirical for part in parts]
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, label="they agree")
    style = {"color": ORANGE, "marker": "o", "markersize": 4, "linewidth": 0, "elinewidth": 1}
    axes.errorbar(predicted, [e.value for e in empirical], yerr=_bars(empirical), label="held out (95 %)", **style)
    axes.set(xlabel="predicted $p_{\\leq}$", ylabel="$p_{\\leq}$ by counting", xlim=(0, 1), ylim=(0, 1))
    _finish(axes, "upper left")
    return figure


@matplotlib.rc_context(PLAIN_TEXT)
def memory_figure(memories, microbatch_size=4, gib=(15, 40, 80)):
    """What an update holds, as stacked bars, beside the memory of accelerators.

    Args:
        memories: dict, name of a model -> `memory.Memory`.
        microbatch_size: prompts whose activations are in memory at a time.
        gib: of accelerators, drawn as lines.

    Returns:
        A matplotlib `Figure`.
    """
    figure = Figure(figsize=(12, 0.6 * len(memories) + 2), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(memories))
    parts = {
        "weights": "weights",
        "optimizer": "Adam's moments",
        "shadows": "anchor and reference",
        "gradients": "gradients",
        "copies": "weights in bfloat16, to compute with",
        "activations": f"activations of {microbatch_size} prompts",
        "logits": "logits of a chunk",
    }
    for (part, label), colour in zip(parts.items(), COLOURS, strict=True):
        share = microbatch_size if part == "activations" else 1
        width = np.array([getattr(need, part) * share / 2**30 for need in memories.values()])
        axes.barh(range(len(memories)), width, left=left, color=colour, label=label, height=0.6)
        left += width
    for size in gib:
        axes.axvline(size, color="black", linewidth=1, linestyle=":")
        _note(axes, f"{size} GiB", (size, -0.5), xytext=(3, 2), textcoords="offset points")
    axes.set_yticks(range(len(memories)), list(memories))
    axes.set(xlabel="GiB", ylim=(len(memories) - 0.5, -0.9), title="What an update of J-BOND holds, on one device")
    _finish(axes)
    figure.legend(frameon=False, fontsize=8, loc="outside right center")
    return figure


def best_of_n_figure(reference, rewards, ns=(1, 2, 4, 8), frequencies=None):
    """The Best-of-N distribution of a tabular problem, one panel for each N: Theorem 1, drawn.

    Args:
        reference: (K,) probabilities.
        rewards: (K,).
        ns: the values of N.
        frequencies: dict, N -> (K,) shares observed by sampling, drawn as dots.

    Returns:
        A matplotlib `Figure`.
    """
    figure = Figure(figsize=(15, 3.8), layout="constrained")
    order = np.argsort(rewards, kind="stable")
    place, reference, rewards = np.arange(len(order)), np.asarray(reference)[order], np.asarray(rewards)[order]
    panels = figure.subplots(1, len(ns), sharey=True)
    for axes, n in zip(panels, ns, strict=True):
        policy = tabular.best_of_n(reference, rewards, n)
        axes.bar(place, policy, width=0.8, color=BLUE, label="Best-of-N, by the theorem")
        axes.step([-0.5, *(place + 0.5)], [reference[0], *reference], color=GREY, linewidth=1, label="reference")
        if frequencies:
            axes.plot(place, frequencies[n][order], "o", color=ORANGE, markersize=4, label="Best-of-N, played")
        win, kl = tabular.win_rate(policy, reference, rewards), tabular.kl(policy, reference)
        axes.set(title=f"N = {n}: win rate {win:.3f}, KL {kl:.2f}", xlabel="reward of the completion")
        axes.set_xticks(place, [f"{reward:g}" for reward in rewards])
        _finish(axes, "upper left" if axes is panels[0] else None)
    panels[0].set_ylabel("probability")
    return figure


def frontier_figure(ns=(2, 4, 8, 16, 32)):
    """Best-of-N under the frontier, without ties.

    Args:
        ns: the values of N.

    Returns:
        A matplotlib `Figure`.
    """
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = figure.subplots()
    _frontier(axes, 1.15 * best_of_n_kl(max(ns)), _points(ns))
    _finish(axes, "center right")
    return figure


def quantile_reward_figure(ns=(2, 4)):
    """What J-BOND's reward is on average beside BOND's, log p_<=: figure 8 of the paper.

    Args:
        ns: anchor samples per prompt; the paper has 2.

    Returns:
        A matplotlib `Figure`.
    """
    figure = Figure(figsize=(15, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    p = np.linspace(0.01, 1, 400)
    for axes, x, label, legend in (
        (left, p, "quantile $p_{\\leq}(y)$ of the completion", "lower right"),
        (right, np.log(p), "$\\log p_{\\leq}(y)$", "upper left"),
    ):
        axes.plot(x, np.log(p), color="black", label="BOND: $\\log p_{\\leq}$")
        for n, colour in zip(ns, COLOURS, strict=False):
            expected = ops.convert_to_numpy(expected_jbond_reward(p.astype("float32"), n))
            axes.plot(x, expected, color=colour, label=f"J-BOND, n = {n}: $-2^{n}\\log 2\\,(1 - p_{{\\leq}})^{n}$")
        meet = [x[np.argmin(abs(p - q))] for q in (0.5, 1.0)]
        axes.plot(meet, np.log([0.5, 1.0]), "s", color=GREY, label="they meet at 1/2 and at 1")
        axes.set(xlabel=label, ylabel="expected reward (nats)", ylim=(-4.8, 0.2))
        _finish(axes, legend)
    left.set_title("Against the quantile")
    right.set_title("Against its logarithm")
    return figure


def paths_figure(paths, ns=(2, 4, 8, 16)):
    """Runs on a tabular problem: win rate against the update, against the KL, and the efficiency that follows.

    Args:
        paths: dict, name -> `tabular.Path`.
        ns: Best-of-N points to show.

    Returns:
        A matplotlib `Figure`.
    """
    figure = Figure(figsize=(15, 4.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    runs = {name: tabular.progress(path) for name, path in paths.items()}
    widest = min(max(f["kl"].max() for f in runs.values()), 1.4 * best_of_n_kl(max(ns)))
    _frontier(middle, widest, _points(ns), notes=False)
    middle.set_xlim(-0.03 * widest, widest)
    for (name, figures), colour in zip(runs.items(), COLOURS, strict=False):
        spent = figures["kl"] > 1e-3  # below, float32 has no digits for the frontier
        left.plot(figures["win_rate"], color=colour, linewidth=1.6, label=name)
        middle.plot(figures["kl"], figures["win_rate"], color=colour, linewidth=1.4)
        right.plot(figures["win_rate"][spent], figures["frontier_efficiency"][spent], color=colour, linewidth=1.6)
    left.set(xlabel="update", ylabel="win rate against the reference", title="Win rate")
    right.axhline(1, color="black", linewidth=1.5)
    right.set(xlabel="win rate against the reference", ylabel="share of the possible gain", title="Frontier efficiency")
    for axes, legend in ((left, "lower right"), (middle, "center right"), (right, None)):
        _finish(axes, legend)
    return figure


def _points(ns):
    return [{"n": n, "kl": best_of_n_kl(n), "win_rate": best_of_n_win_rate(n)} for n in ns]


def _frontier(axes, widest, points, notes=True):
    """Win rate against KL: the frontier up to `widest` nats, and Best-of-N, named beside the points or in the legend."""
    kl = np.linspace(0, widest, 200)
    best = ops.convert_to_numpy(frontier_win_rate(kl.astype("float32")))
    axes.plot(kl, best, color="black", label="frontier: no policy is above")
    label = None if notes else f"Best-of-N, N = {', '.join(str(p['n']) for p in points)}"
    axes.scatter([p["kl"] for p in points], [p["win_rate"] for p in points], color=GREY, marker="s", zorder=3, label=label)
    for point in points if notes else ():
        place = (point["kl"], point["win_rate"])
        _note(axes, f"Best-of-{point['n']}", place, xytext=(6, -10), textcoords="offset points")
    axes.axhline(0.5, color=GREY, linewidth=0.6)
    axes.set(xlabel="KL to the reference (nats)", ylabel="win rate against the reference", title="Win rate against KL")


def _finish(axes, legend=None):
    """Without the upper and the right edge; `legend` is its place, if there is to be one."""
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(frameon=False, fontsize=8, loc=legend)


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


def drawable(text):
    """A text with the numbers of those characters that the font lacks.

    >>> print(drawable("n = \N{CJK UNIFIED IDEOGRAPH-65E5}"))
    n = \\u65e5
    """
    known = font_manager.get_font(font_manager.findfont(font_manager.FontProperties())).get_charmap()
    return "".join(c if ord(c) in known else c.encode("unicode_escape").decode() for c in text)


DASHES = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))


def setting_style(i):
    """Colour and dashes of the i-th setting of a sweep, for all of its figures."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i // len(COLOURS) % len(DASHES)]}


@matplotlib.rc_context(PLAIN_TEXT)
def against_step_figure(settings, metric, label, points=()):
    """A metric against the update, a line for each setting: means over seeds with their 95 % intervals.

    The picture is as high as the means need: an interval that is much wider leaves it.

    Args:
        settings: list of (batches, held_out), in the order of `setting_style`. `batches` is an array of (step, mean over
            seeds) rows of the training batches, or None; `held_out` a DataFrame indexed by (metric, step) with the columns
            `mean`, `low`, `high`.
        metric: its name in `held_out`.
        label: of its axis.
        points: Best-of-N, drawn as dotted lines: list of dicts with `n` and `metric`.

    Returns:
        A matplotlib `Figure`.
    """
    figure, axes = _panel()
    drawn: list = [[point[metric] for point in points]]
    for i, (batches, held_out) in enumerate(settings):
        style = setting_style(i)
        if batches is not None:
            step, mean = np.asarray(batches).T
            window = min(15, 1 + len(mean) // 6)
            smooth = np.convolve(np.where(np.isfinite(mean), mean, np.nan), np.ones(window) / window, mode="valid")
            axes.plot(step[window - 1 :], smooth, linewidth=1, alpha=0.45, **style)
            drawn.append(smooth)
        rows = _rows_of(held_out, metric)
        drawn.append(rows["mean"])
        joined = style if batches is None else {"color": style["color"], "linestyle": "none"}
        axes.errorbar(
            rows.index, rows["mean"], yerr=_seed_bars(rows), marker="o", markersize=4, elinewidth=1, capsize=2, **joined
        )
    for point in points:
        axes.axhline(point[metric], color=GREY, linewidth=0.8, linestyle=":")
        _note(axes, f"Best-of-{point['n']}", (axes.get_xlim()[0], point[metric]), xytext=(4, 2), textcoords="offset points")
    _frame(axes, drawn)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="update", ylabel=drawable(label))
    _finish(axes)
    return figure


@matplotlib.rc_context(PLAIN_TEXT)
def against_kl_figure(settings, metric, label, points=()):
    """What was reached against the KL that was spent, along the run; for the win rate with the frontier.

    Args:
        settings: list of DataFrames indexed by (metric, step), see `against_step_figure`.
        metric: "win_rate", or another one.
        label: of its axis.
        points: Best-of-N: list of dicts with `n`, `kl` and `metric`.

    Returns:
        A matplotlib `Figure`.
    """
    figure, axes = _panel()
    spent = [_rows_of(held_out, "kl") for held_out in settings]
    widest = 1.08 * np.nanmax(np.concatenate([[0.1], *(rows["mean"] for rows in spent), [p["kl"] for p in points]]))
    if metric == "win_rate":
        _frontier(axes, widest, points)
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    else:
        axes.scatter([p["kl"] for p in points], [p[metric] for p in points], color=GREY, marker="s", zorder=3)
        for p in points:
            _note(axes, f"Best-of-{p['n']}", (p["kl"], p[metric]), xytext=(6, -10), textcoords="offset points")
    for i, (held_out, kl) in enumerate(zip(settings, spent, strict=True)):
        rows = _rows_of(held_out, metric)
        kl = kl.reindex(rows.index)
        bars = {"xerr": _seed_bars(kl), "yerr": _seed_bars(rows), "elinewidth": 0.8, "marker": "o", "markersize": 4}
        axes.errorbar(kl["mean"], rows["mean"], linewidth=1.2, **bars, **setting_style(i))
    _frame(axes, [[point[metric] for point in points], *(_rows_of(held_out, metric)["mean"] for held_out in settings)])
    axes.set(xlabel="KL to the reference (nats)", ylabel=drawable(label), title="", xlim=(-0.03 * widest, widest))
    _finish(axes)
    return figure


def _frame(axes, drawn):
    """As high as the means and Best-of-N need, with half as much above and below: wide intervals leave the picture."""
    drawn = np.concatenate(drawn)
    low, high = (
        extreme(drawn, initial=first, where=np.isfinite(drawn)) for extreme, first in ((np.min, np.inf), (np.max, -np.inf))
    )
    room = 0.5 * (high - low)
    bottom, top = axes.get_ylim()
    if room > 0:
        axes.set_ylim(max(bottom, low - room), min(top, high + room))


def _panel():
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    return figure, figure.subplots()


def _rows_of(held_out, metric):
    """Of one metric, by step; what is infinite is not drawn."""
    rows = held_out[held_out.index.get_level_values("metric") == metric].droplevel("metric").astype("float64")
    return rows.where(np.isfinite(rows))


def _seed_bars(rows):
    """Half lengths below and above; none, rather than an invented one, where there is one seed."""
    return np.nan_to_num(np.array([rows["mean"] - rows["low"], rows["high"] - rows["mean"]], "float64"))
