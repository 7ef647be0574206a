"""`keras-bond report`: what a sweep has found, on one page that needs nothing else.

    DIR/report.html    verdicts, tables, figures, provenance
    DIR/figures/       the same figures as PNG files
    DIR/results.csv    a row for each cell: its place in the grid, seed, status, and every figure of its last evaluation
    DIR/intervals.csv  a row for each setting, metric and step: mean and 95 % interval over seeds

Nothing in them depends on when, how often interrupted or in which folder the cells were run.
"""

import base64
import io
import json
import math
import pathlib
import re
from typing import NamedTuple

import jinja2
import matplotlib
import pandas as pd
from matplotlib.lines import Line2D

from keras_bond.evaluation import UNITS
from keras_bond.experiments.findings import VERDICTS, compare, interval, numbers
from keras_bond.experiments.plots import PLAIN_TEXT, against_kl_figure, against_step_figure, drawable, setting_style
from keras_bond.experiments.provenance import is_finished, record_of, write_whole
from keras_bond.experiments.spec import cell_name, label_of, setting_of
from keras_bond.experiments.values import text_of

SHOWN = (
    "reward",
    "win_rate",
    "kl",
    "frontier_efficiency",
    "kl_efficiency",
    "log_quantile",
    "forward_kl_best_of_n",
    "backward_kl_best_of_n",
    "completion_length",
)
"""The metrics of the page's table, where there are such; and those that a finding names."""

IN_TRAINING = {"reward": "reward", "kl": "kl_reference"}
"""Metrics that metrics.csv has as well, and their names there."""


class Setting(NamedTuple):
    """A point of the grid, over its seeds."""

    name: str
    """Of its cells, without the seed; empty where there is no grid."""
    label: str
    cells: list
    """Names of the finished ones."""
    intervals: pd.DataFrame
    """(metric, step) -> `seeds`, `mean`, `low`, `high`."""
    last: pd.DataFrame
    """metric -> the same, of the last evaluation of each seed."""


class Plot(NamedTuple):
    """A figure of the page."""

    title: str
    source: str
    """SVG, as a data URL."""
    png: bytes


class Sweep(NamedTuple):
    """What `sweep` left in a folder."""

    plan: dict
    """sweep.json."""
    records: dict
    """Name of the cell -> its run.json, or None."""
    tables: dict
    """Name of the finished cell -> its `metrics`, `evaluation` and `best_of_n`, DataFrames."""
    settings: list
    """Every `Setting` of the plan, so that a colour stays the same while cells come in."""
    points: list
    """Best-of-N of the reference, mean over cells: dicts with `n`, `win_rate`, `reward`, `kl`."""


def run(folder, say=print):
    """Write the report of a sweep to its folder; of what is finished, if it is not complete.

    Args:
        folder: what `sweep` wrote.
        say: what prints where the report is.

    Returns:
        List of `Comparison`: the findings with their verdicts.

    Raises:
        ValueError: if the folder is not a sweep's, has no finished cell, or a file in it is not as `results` says.
    """
    folder = pathlib.Path(folder)
    sweep = load(folder)
    plan, evaluations = sweep.plan, {name: tables["evaluation"] for name, tables in sweep.tables.items()}
    cells = {name: plan["cells"][name] for name in sweep.tables}
    comparisons = [compare(finding, cells, evaluations, plan["keys"]) for finding in plan["findings"]]
    parts = [setting.intervals.reset_index().assign(setting=setting.name or plan["name"]) for setting in sweep.settings]
    columns = ["setting", "metric", "step", "seeds", "mean", "low", "high"]
    plots = _plots(sweep, comparisons)
    files = {
        "report.html": _page(sweep, comparisons, plots),
        "results.csv": _results(sweep).to_csv(index=False),
        "intervals.csv": pd.concat([part for part in parts if len(part)])[columns].to_csv(index=False),
    }
    (folder / "figures").mkdir(exist_ok=True)
    files |= {f"figures/{re.sub(r'[^a-z0-9.+-]+', '_', plot.title.lower())}.png": plot.png for plot in plots}
    for name, content in files.items():
        write_whole(folder / name, content)
    counts = {verdict: sum(c.verdict == verdict for c in comparisons) for verdict in VERDICTS}
    found = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) or "none named"
    say(f"{plan['name']}: {len(cells)} of {len(sweep.records)} cells; findings: {found}.")
    say(f"The page is {folder / 'report.html'}; beside it are results.csv, intervals.csv and, as PNG files, figures/.")
    return comparisons


def load(folder):
    """The `Sweep` in a folder.

    Raises:
        ValueError: as in `run`.
    """
    if not (folder / "sweep.json").is_file():
        raise ValueError(f"argument DIR: expected the folder of a sweep, received {str(folder)!r}, which has no sweep.json")
    plan = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    records = {name: record_of(folder / "cells" / name) for name in plan["cells"]}
    tables = {
        name: {table: _read(folder / "cells" / name / f"{table}.csv", column) for table, column in _TABLES.items()}
        for name, record in records.items()
        if is_finished(record, plan.get("sources"))
    }
    if not tables:
        raise ValueError(
            f"argument DIR: expected a sweep with a finished cell, {str(folder)!r} has none; run the sweep again"
        )
    groups: dict = {}
    for name, place in plan["cells"].items():
        setting = setting_of(place, plan["keys"])
        groups.setdefault((cell_name(setting), label_of(setting) or plan["name"]), []).append(name)
    settings = []
    for (setting, label), names in groups.items():
        done = [name for name in names if name in tables]
        evaluations = [tables[name]["evaluation"] for name in done]
        last = _intervals([table.tail(1).assign(step=0) for table in evaluations]).droplevel("step")
        settings.append(Setting(setting, label, done, _intervals(evaluations), last))
    points = pd.concat([each["best_of_n"].apply(numbers) for each in tables.values()]).groupby("n", as_index=False).mean()
    return Sweep(plan, records, tables, settings, points.to_dict("records"))


_TABLES = {"metrics": "step", "evaluation": "step", "best_of_n": "n"}


def _read(path, column):
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"argument DIR: {str(path)!r} is no table: {' '.join(str(error).split())}") from error
    places = numbers(table[column]) if column in table else pd.Series()
    if not len(places) or places.duplicated().any() or not (places % 1 == 0).all():
        expected = f"rows with a column `{column}` of distinct integers"
        raise ValueError(f"argument DIR: {str(path)!r}: expected {expected}, received {list(table)}, {list(places)[:9]}")
    return table


def _intervals(evaluations):
    rows = {}
    together = pd.concat([table.apply(numbers) for table in evaluations]) if evaluations else pd.DataFrame()
    for metric in together:
        if metric != "step" and not metric.endswith(("_low", "_high")):
            for step, values in together.dropna(subset=metric).groupby("step")[metric]:
                rows[metric, int(step)] = [len(values), *interval(values)]
    index = pd.MultiIndex.from_tuples(rows, names=["metric", "step"])
    return pd.DataFrame(list(rows.values()), index=index, columns=["seeds", "mean", "low", "high"])


def _results(sweep):
    plan, rows = sweep.plan, []
    taken = {"cell", "status", *(column for tables in sweep.tables.values() for column in tables["evaluation"])}
    for name, place in plan["cells"].items():
        place = {f"parameter_{key}" if key in taken and key != "seed" else key: its for key, its in place.items()}
        place = {key: its if type(its) in (int, float) else text_of(its) for key, its in place.items()}
        last = sweep.tables[name]["evaluation"].iloc[-1].to_dict() if name in sweep.tables else {}
        rows.append({**last, "cell": name, **place, "status": _status(sweep, name)[0]})
    columns = ["cell", *place, "status"]
    frame = pd.DataFrame(rows).astype({"step": "Int64"})
    return frame[[*columns, *(column for column in frame if column not in columns)]]


def _status(sweep, name):
    """(a word, what is to be known about it)."""
    record = sweep.records[name]
    if record is None:
        return "missing", "not run yet"
    if record["status"] == "ok" and name not in sweep.tables:
        sources = ", ".join(f"{key} {its}" for key, its in (record.get("sources") or {"sources": "unknown"}).items())
        return "outdated", f"made by other sources ({sources}): run the sweep again with --rerun"
    return record["status"], record["error"]


def _evaluated(sweep):
    return {metric for setting in sweep.settings for metric, _ in setting.intervals.index}


def _page(sweep, comparisons, plots):
    plan, settings, there = sweep.plan, sweep.settings, _evaluated(sweep)
    named = [c.finding["metric"] for c in comparisons]
    metrics = [metric for metric in dict.fromkeys([*SHOWN, *named]) if metric in there]
    legend = [{"label": setting.label, **_swatch(i)} for i, setting in enumerate(settings)]
    figures: dict = {}
    for comparison in comparisons:
        figures.setdefault(comparison.finding.get("figure"), []).append(_finding(comparison))
    finished = [sweep.records[name] for name in sweep.tables]
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html.j2")
    return template.render(
        plan=plan,
        seeds=sorted({parameters["seed"] for parameters in plan["cells"].values()}),
        total=len(sweep.records),
        least=min(len(setting.cells) for setting in settings if setting.cells),
        legend=legend,
        metrics=[{"label": title_of(metric), "unit": unit_of(metric)} for metric in metrics],
        rows=[
            (key, len(s.cells), [_last(s, metric) for metric in metrics]) for key, s in zip(legend, settings, strict=True)
        ],
        figures=figures,
        plots=plots,
        best_of_n=[(int(p["n"]), [number(p[m]) if m in p else "" for m in metrics]) for p in sweep.points],
        provenance=_provenance(plan, finished),
        unfinished=[(name, *_status(sweep, name)) for name in sweep.records if name not in sweep.tables],
    )


@matplotlib.rc_context(PLAIN_TEXT)
def _plots(sweep, comparisons):
    """The figures, a list of `Plot`: reward and KL, what findings name, and what there is beside."""
    there, named = _evaluated(sweep), [comparison.finding["metric"] for comparison in comparisons]
    held_out = [setting.intervals for setting in sweep.settings]
    plots, last = [], ("win_rate", "frontier_efficiency")
    for metric in dict.fromkeys(["reward", "kl", *(name for name in named if name not in last), *last]):
        if metric in there:
            batches = [_batches(sweep, setting, IN_TRAINING.get(metric)) for setting in sweep.settings]
            points = _points(sweep, metric) if metric != "kl" else []
            figure = against_step_figure(list(zip(batches, held_out, strict=True)), metric, axis_of(metric), points)
            plots.append(_plot(figure, f"{title_of(metric)} against the update", sweep.settings))
    for metric in ("win_rate", "reward"):
        if {metric, "kl"} <= there:
            figure = against_kl_figure(held_out, metric, axis_of(metric), _points(sweep, metric, "kl"))
            plots.append(_plot(figure, f"{title_of(metric)} against KL", sweep.settings))
    return plots


def _points(sweep, *metrics):
    """Best-of-N, where it has these figures."""
    return [point for point in sweep.points if all(math.isfinite(point.get(metric, math.nan)) for metric in metrics)]


def _batches(sweep, setting, column):
    """(step, mean over seeds) rows of the training batches; None where there are none."""
    tables = [sweep.tables[name]["metrics"] for name in setting.cells]
    tables = [table[["step", column]].apply(numbers) for table in tables if column in table]
    return pd.concat(tables).groupby("step").mean().reset_index().to_numpy() if tables else None


def _plot(figure, title, settings):
    svg, png = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "keras_bond"}):  # or its ids would be new every time
        figure.savefig(svg, format="svg", metadata={"Date": None})
    lines = [Line2D([], [], **setting_style(i)) for i, _ in enumerate(settings)]
    key = figure.legend(lines, range(len(lines)), loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    for text, setting in zip(key.get_texts(), settings, strict=True):  # a label that begins with `_` would be left out
        text.set(text=drawable(setting.label), fontsize="small")
    figure.savefig(png, format="png", dpi=110, bbox_inches="tight")  # the page has a legend of its own
    return Plot(title, "data:image/svg+xml;base64," + base64.b64encode(svg.getvalue()).decode(), png.getvalue())


def _swatch(i):
    style = setting_style(i)
    dashes = style["linestyle"]
    return {"colour": style["color"], "dashes": "none" if dashes == "solid" else " ".join(str(2 * d) for d in dashes[1])}


def _last(setting, metric):
    """(mean, interval) of the last evaluations, as text."""
    if metric not in setting.last.index:
        return "", ""
    seeds, mean, low, high = setting.last.loc[metric]
    few = "" if seeds == len(setting.cells) else f"{seeds:.0f} of {len(setting.cells)} seeds"
    return number(mean), ", ".join(filter(None, ["" if math.isnan(low) else f"{number(low)} to {number(high)}", few]))


def _finding(comparison):
    finding, difference = comparison.finding, comparison.difference
    first, second = (label_of(setting) for setting in finding["compare"])
    claim = f"within ±{finding['margin']:g}" if finding["claim"] == "equal" else finding["claim"]
    when = f"gained since step {finding['since']}, " if "since" in finding else ""
    at = finding.get("at", "final")
    return {
        "says": finding["says"],
        "verdict": comparison.verdict,
        "class": comparison.verdict.replace(" ", "-"),
        "compared": f"{title_of(finding['metric'])}, {when}{'last evaluation' if at == 'final' else f'step {at}'}",
        "sides": f"{first} less {second}",
        "claim": claim,
        "difference": number(difference.mean, sign=True),
        "interval": "" if math.isnan(difference.low) else " to ".join(number(v, sign=True) for v in difference[1:]),
        "seeds": comparison.seeds,
        "why": comparison.why,
    }


def _provenance(plan, records):
    """What the finished cells were run with; more than one value where they differ."""
    sources = plan.get("sources") or dict.fromkeys(("notebook", "keras_bond"), "not recorded")
    found = {"notebook": f"{plan['notebook']}, digest of its code: {sources['notebook']}"}
    found |= {"keras_bond": f"digest of its code: {sources['keras_bond']}"}
    for key in ("backend", "device", "revision"):
        found[key] = ", ".join(sorted({str(record[key]) for record in records if record[key]})) or "not in git"
    found["versions"] = ", ".join(sorted({f"{k} {v}" for record in records for k, v in record["versions"].items()}))
    had: dict = {}
    for name, its in (item for record in records for item in record["parameters"].items()):
        if name not in (*plan["keys"], "seed", "output"):
            had.setdefault(name, {})[label_of({name: its})] = None
    return {**found, "parameters": "; ".join(" or ".join(each) for each in had.values())}


def title_of(metric):
    """A metric's name for people.

    >>> title_of("backward_kl_best_of_n"), title_of("win_rate"), title_of("kl")
    ('Backward KL to Best-of-N', 'Win rate', 'KL')
    """
    words = metric.replace("_kl_best_of_n", "_KL to Best-of-N").replace("_", " ")
    return "KL" + words[2:] if words.startswith("kl") else words[0].upper() + words[1:]


def axis_of(metric):
    """The same with its unit.

    >>> axis_of("kl"), axis_of("reward")
    ('KL (nats)', 'Reward')
    """
    return title_of(metric) + (f" ({unit_of(metric)})" if unit_of(metric) else "")


def unit_of(metric):
    """Its unit, where that says something: nats, tokens."""
    unit = UNITS.get(metric, "")
    return "" if unit in ("reward", "share") else unit


def number(value, sign=False):
    r"""Three places, and a minus that is one; nothing where there is no number.

    >>> number(0.25, sign=True), number(-0.25) == "\N{MINUS SIGN}0.250", number(math.inf), number(math.nan)
    ('+0.250', True, 'inf', '')
    """
    return "" if math.isnan(value) else f"{value:{'+' if sign else ''}z.3f}".replace("-", "\N{MINUS SIGN}")
