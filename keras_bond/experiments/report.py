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
from typing import NamedTuple

import jinja2
import matplotlib
import pandas as pd
from matplotlib.lines import Line2D

from keras_bond.evaluation import UNITS
from keras_bond.experiments.cell import record_of
from keras_bond.experiments.findings import VERDICTS, compare, interval
from keras_bond.experiments.plots import against_kl_figure, against_step_figure, setting_style
from keras_bond.experiments.provenance import write_whole
from keras_bond.experiments.spec import cell_name, setting_of

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
    files |= {f"figures/{plot.title.lower().replace(' ', '_')}.png": plot.png for plot in plots}
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
        if record is not None and record["status"] == "ok"
    }
    if not tables:
        raise ValueError(
            f"argument DIR: expected a sweep with a finished cell, {str(folder)!r} has none; run the sweep again"
        )
    groups: dict = {}
    for name, parameters in plan["cells"].items():
        place = setting_of(parameters, plan["keys"])
        groups.setdefault((cell_name(place), _words(place) or plan["name"]), []).append(name)
    settings = []
    for (setting, label), names in groups.items():
        done = [name for name in names if name in tables]
        settings.append(Setting(setting, label, done, _intervals([tables[name]["evaluation"] for name in done])))
    points = pd.concat([each["best_of_n"] for each in tables.values()]).groupby("n", as_index=False).mean(numeric_only=True)
    return Sweep(plan, records, tables, settings, points.to_dict("records"))


_TABLES = {"metrics": "step", "evaluation": "step", "best_of_n": "n"}


def _read(path, column):
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"argument DIR: {str(path)!r} is no table: {' '.join(str(error).split())}") from error
    if column not in table or table.empty:
        raise ValueError(f"argument DIR: {str(path)!r}: expected rows with a column `{column}`, received {list(table)}")
    return table


def _intervals(evaluations):
    rows = {}
    together = pd.concat(evaluations) if evaluations else pd.DataFrame()
    for metric in together.select_dtypes("number"):
        if metric != "step" and not metric.endswith(("_low", "_high")):
            for step, values in together.dropna(subset=metric).groupby("step")[metric]:
                rows[metric, step] = [len(values), *interval(values)]
    index = pd.MultiIndex.from_tuples(rows, names=["metric", "step"])
    return pd.DataFrame(list(rows.values()), index=index, columns=["seeds", "mean", "low", "high"])


def _results(sweep):
    plan, rows = sweep.plan, []
    metrics = {column for tables in sweep.tables.values() for column in tables["evaluation"]}
    for name, parameters in plan["cells"].items():
        place = {f"parameter_{key}" if key in metrics else key: parameters[key] for key in plan["keys"]}
        last = sweep.tables[name]["evaluation"].iloc[-1].to_dict() if name in sweep.tables else {}
        rows.append({"cell": name, **place, "seed": parameters["seed"], "status": _status(sweep.records[name]), **last})
    return pd.DataFrame(rows).astype({"step": "Int64"})


def _status(record):
    return "missing" if record is None else record["status"]


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
    fixed = {k: v for k, v in next(iter(plan["cells"].values())).items() if k not in (*plan["keys"], "seed")}
    unfinished = {name: record for name, record in sweep.records.items() if name not in sweep.tables}
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
        metrics=[{"label": label_of(metric), "unit": unit_of(metric)} for metric in metrics],
        rows=[
            (key, len(s.cells), [_last(s, metric) for metric in metrics]) for key, s in zip(legend, settings, strict=True)
        ],
        figures=figures,
        plots=plots,
        best_of_n=[(int(p["n"]), [number(p[m]) if m in p else "" for m in metrics]) for p in sweep.points],
        fixed=_words(fixed, "; "),
        provenance=_provenance([sweep.records[name] for name in sweep.tables]),
        unfinished=[(name, _status(r), r["error"] if r else "not run yet") for name, r in unfinished.items()],
    )


def _plots(sweep, comparisons):
    """The figures, a list of `Plot`: reward and KL, what findings name, and what there is beside."""
    there, named = _evaluated(sweep), [comparison.finding["metric"] for comparison in comparisons]
    held_out = [setting.intervals for setting in sweep.settings]
    plots, last = [], ("win_rate", "frontier_efficiency")
    for metric in dict.fromkeys(["reward", "kl", *(name for name in named if name not in last), *last]):
        if metric in there:
            batches = [_batches(sweep, setting, IN_TRAINING.get(metric)) for setting in sweep.settings]
            points = [p for p in sweep.points if metric in p and metric != "kl"]
            figure = against_step_figure(list(zip(batches, held_out, strict=True)), metric, axis_of(metric), points)
            plots.append(_plot(figure, f"{label_of(metric)} against the update", sweep.settings))
    for metric in ("win_rate", "reward"):
        if {metric, "kl"} <= there:
            points = [p for p in sweep.points if {metric, "kl"} <= p.keys()]
            figure = against_kl_figure(held_out, metric, axis_of(metric), points)
            plots.append(_plot(figure, f"{label_of(metric)} against KL", sweep.settings))
    return plots


def _batches(sweep, setting, column):
    """(step, mean over seeds) rows of the training batches; None where there are none."""
    tables = [sweep.tables[name]["metrics"] for name in setting.cells]
    tables = [table for table in tables if column in table]
    return pd.concat(tables).groupby("step")[column].mean().reset_index().to_numpy() if tables else None


def _plot(figure, title, settings):
    svg, png = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "keras_bond"}):  # or its ids would be new every time
        figure.savefig(svg, format="svg", metadata={"Date": None})
    key = [Line2D([], [], label=setting.label, **setting_style(i)) for i, setting in enumerate(settings)]
    figure.legend(handles=key, loc="outside upper center", ncols=2, frameon=False, fontsize="small")  # the page has its own
    figure.savefig(png, format="png", dpi=110)
    return Plot(title, "data:image/svg+xml;base64," + base64.b64encode(svg.getvalue()).decode(), png.getvalue())


def _swatch(i):
    style = setting_style(i)
    dashes = style["linestyle"]
    return {"colour": style["color"], "dashes": "none" if dashes == "solid" else " ".join(str(2 * d) for d in dashes[1])}


def _last(setting, metric):
    """(mean, interval) of the last step, as text."""
    rows = setting.intervals[setting.intervals.index.get_level_values("metric") == metric]
    if rows.empty:
        return "", ""
    _, mean, low, high = rows.iloc[-1]
    return number(mean), "" if math.isnan(low) else f"{number(low)} to {number(high)}"


def _finding(comparison):
    finding, difference = comparison.finding, comparison.difference
    first, second = (_words(setting) for setting in finding["compare"])
    claim = f"within ±{finding['margin']:g}" if finding["claim"] == "equal" else finding["claim"]
    when = f"gained since step {finding['since']}, " if "since" in finding else ""
    at = finding.get("at", "final")
    return {
        "says": finding["says"],
        "verdict": comparison.verdict,
        "class": comparison.verdict.replace(" ", "-"),
        "compared": f"{label_of(finding['metric'])}, {when}{'last evaluation' if at == 'final' else f'step {at}'}",
        "sides": f"{first} less {second}",
        "claim": claim,
        "difference": "" if math.isnan(difference.mean) else f"{number(difference.mean, sign=True)}",
        "interval": "" if math.isnan(difference.low) else " to ".join(number(v, sign=True) for v in difference[1:]),
        "seeds": comparison.seeds,
        "why": comparison.why,
    }


def _provenance(records):
    """What the finished cells were run with; more than one value where they differ."""
    found = {}
    for key in ("backend", "device", "revision"):
        found[key] = ", ".join(sorted({str(record[key]) for record in records if record[key]})) or "not in git"
    names = {f"{name} {version}" for record in records for name, version in record["versions"].items()}
    return {**found, "versions": ", ".join(sorted(names))}


def _words(values, separator=", "):
    words = (f"{key} = {value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items())
    return separator.join(words)


def label_of(metric):
    """A metric's name for people.

    >>> label_of("backward_kl_best_of_n"), label_of("win_rate"), label_of("kl")
    ('Backward KL to Best-of-N', 'Win rate', 'KL')
    """
    words = metric.replace("_kl_best_of_n", "_KL to Best-of-N").replace("_", " ")
    return "KL" + words[2:] if words.startswith("kl") else words[0].upper() + words[1:]


def axis_of(metric):
    """The same with its unit.

    >>> axis_of("kl"), axis_of("reward")
    ('KL (nats)', 'Reward')
    """
    return label_of(metric) + (f" ({unit_of(metric)})" if unit_of(metric) else "")


def unit_of(metric):
    """Its unit, where that says something: nats, tokens."""
    unit = UNITS.get(metric, "")
    return "" if unit in ("reward", "share") else unit


def number(value, sign=False):
    r"""Three places, and a minus that is one.

    >>> number(0.25, sign=True), number(-0.25) == "\N{MINUS SIGN}0.250"
    ('+0.250', True)
    """
    return f"{value:{'+' if sign else ''}z.3f}".replace("-", "\N{MINUS SIGN}")
