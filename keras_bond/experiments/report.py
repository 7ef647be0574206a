"""`keras-bond report`: what a sweep has found, on one page that needs nothing else.

    DIR/report.html    verdicts, tables, figures, provenance
    DIR/results.csv    a row for each cell: its place in the grid, seed, status, and every figure of its last evaluation
    DIR/intervals.csv  a row for each setting, metric and step: mean and 95 % interval over seeds

Nothing in them depends on when, how often interrupted or in which folder the cells were run.
"""

import base64
import io
import json
import math
import pathlib

import jinja2
import matplotlib
import pandas as pd

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
    "truncated",
)
"""The metrics of the page's table, where there are such; and those that a finding names."""

IN_TRAINING = {"reward": "reward", "kl": "kl_reference"}
"""Metrics that metrics.csv has as well, and their names there."""


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
    if not (folder / "sweep.json").is_file():
        raise ValueError(f"argument DIR: expected the folder of a sweep, received {str(folder)!r}, which has no sweep.json")
    plan = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    records = {name: record_of(folder / "cells" / name) for name in plan["cells"]}
    done = [name for name, record in records.items() if record is not None and record["status"] == "ok"]
    if not done:
        raise ValueError(
            f"argument DIR: expected a sweep with a finished cell, {str(folder)!r} has none; run the sweep again"
        )
    read = {
        name: {name_: _read(folder / "cells" / name / f"{name_}.csv", column) for name_, column in _TABLES.items()}
        for name in done
    }
    evaluations = {name: tables["evaluation"] for name, tables in read.items()}
    cells = {name: plan["cells"][name] for name in done}
    comparisons = [compare(finding, cells, evaluations, plan["keys"]) for finding in plan["findings"]]

    names = {name: cell_name(setting_of(parameters, plan["keys"])) for name, parameters in plan["cells"].items()}
    settings = {
        label: [name for name in done if names[name] == label] for label in dict.fromkeys(names.values())
    }  # all of the plan, so that a colour stays the same while cells come in
    intervals = {
        label: _intervals([evaluations[name] for name in members]) for label, members in settings.items() if members
    }
    points = pd.concat([tables["best_of_n"] for tables in read.values()]).groupby("n", as_index=False).mean()

    parts = [table.reset_index().assign(setting=label or plan["name"]) for label, table in intervals.items()]
    files = {
        "report.html": _page(plan, records, done, settings, intervals, points, comparisons, read),
        "results.csv": _results(plan, records, evaluations).to_csv(index=False),
        "intervals.csv": pd.concat(parts)[["setting", "metric", "step", "seeds", "mean", "low", "high"]].to_csv(index=False),
    }
    for name, text in files.items():
        write_whole(folder / name, text)
    verdicts = [sum(c.verdict == verdict for c in comparisons) for verdict in VERDICTS]
    found = (
        ", ".join(f"{count} {verdict}" for count, verdict in zip(verdicts, VERDICTS, strict=True) if count) or "none named"
    )
    say(f"{plan['name']}: {len(done)} of {len(records)} cells; findings: {found}.")
    say(f"The page is {folder / 'report.html'}, the figures are in results.csv and intervals.csv beside it.")
    return comparisons


_TABLES = {"metrics": "step", "evaluation": "step", "best_of_n": "n"}


def _read(path, column):
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"argument DIR: {str(path)!r} is no table: {' '.join(str(error).split())}") from error
    if column not in table or table.empty:
        raise ValueError(f"argument DIR: {str(path)!r}: expected rows with a column `{column}`, received {list(table)}")
    return table


def _metrics(table):
    numbers = table.select_dtypes("number")
    return [name for name in numbers if name != "step" and not name.endswith(("_low", "_high"))]


def _intervals(evaluations):
    """(metric, step) -> seeds, mean, low, high."""
    together = pd.concat(evaluations)
    rows = {}
    for metric in _metrics(together):
        for step, values in together.groupby("step")[metric]:
            values = values.dropna()
            if len(values):
                rows[metric, step] = {"seeds": len(values), **interval(values)._asdict()}
    index = pd.MultiIndex.from_tuples(rows, names=["metric", "step"])
    return pd.DataFrame(list(rows.values()), index=index)


def _results(plan, records, evaluations):
    rows = []
    metrics = {column for table in evaluations.values() for column in table}
    for name, parameters in plan["cells"].items():
        place = {f"parameter_{key}" if key in metrics else key: parameters[key] for key in plan["keys"]}
        last = evaluations[name].iloc[-1].to_dict() if name in evaluations else {}
        rows.append({"cell": name, **place, "seed": parameters["seed"], "status": _status(records[name]), **last})
    table = pd.DataFrame(rows)
    if "step" in table:
        table["step"] = table["step"].astype("Int64")
    return table


def _status(record):
    return "missing" if record is None else record["status"]


def _page(plan, records, done, settings, intervals, points, comparisons, read):
    named = [c.finding["metric"] for c in comparisons]
    there = {metric for table in intervals.values() for metric in table.index.levels[0]}
    metrics = [metric for metric in dict.fromkeys([*SHOWN, *named]) if metric in there]
    seeds = sorted({plan["cells"][name]["seed"] for name in plan["cells"]})
    legend = [
        {"label": _words(setting_of(plan["cells"][_first(plan, label)], plan["keys"])) or plan["name"], **_swatch(i)}
        for i, label in enumerate(settings)
    ]
    rows = [
        {"legend": legend[i], "seeds": len(members), "values": [_shown(intervals.get(label), metric) for metric in metrics]}
        for i, (label, members) in enumerate(settings.items())
    ]
    figures: dict = {}
    for comparison in comparisons:
        figures.setdefault(comparison.finding.get("figure"), []).append(_finding(comparison))
    finished = [records[name] for name in done]
    varies = {*plan["keys"], "seed"}
    first = next(iter(plan["cells"].values()))
    fixed = {key: value for key, value in first.items() if key not in varies}
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report.html.j2")
    return template.render(
        plan=plan,
        seeds=seeds,
        total=len(records),
        done=len(done),
        least=min((len(members) for members in settings.values() if members), default=0),
        legend=legend,
        metrics=[{"label": label_of(metric), "unit": UNITS.get(metric, "")} for metric in metrics],
        rows=rows,
        figures=figures,
        plots=_plots(settings, intervals, points, named, read),
        best_of_n=[{key: f"{value:.3f}" if key != "n" else int(value) for key, value in p.items()} for p in _dicts(points)],
        fixed={key: json.dumps(value) if not isinstance(value, str) else value for key, value in fixed.items()},
        provenance=_provenance(finished),
        unfinished=[
            (name, _status(r), r["error"] if r else "not run yet") for name, r in records.items() if name not in done
        ],
    )


def _first(plan, label):
    return next(n for n, parameters in plan["cells"].items() if cell_name(setting_of(parameters, plan["keys"])) == label)


def _plots(settings, intervals, points, named, read):
    """The figures of the page: list of dicts with `title`, `alt` and `source`."""
    held_out = [intervals.get(label, _NOTHING) for label in settings]
    there = {metric for table in intervals.values() for metric in table.index.levels[0]}
    plots = []
    for metric in dict.fromkeys(["reward", "kl", *(name for name in named if name != "win_rate"), "win_rate"]):
        if metric in there:
            column = IN_TRAINING.get(metric)
            lines = [(_batches([read[name]["metrics"] for name in members], column), table) for members, table in
                     zip(settings.values(), held_out, strict=True)]  # fmt: skip
            best = _dicts(points) if metric in ("reward", "win_rate") and metric in points else ()
            figure = against_step_figure(lines, metric, axis_of(metric), best)
            plots.append(_picture(figure, f"{label_of(metric)} against the update"))
    for metric in ("win_rate", "reward"):
        if {metric, "kl"} <= there:
            best = _dicts(points) if {metric, "kl"} <= set(points) else ()
            figure = against_kl_figure(held_out, metric, axis_of(metric), best)
            plots.append(_picture(figure, f"{label_of(metric)} against KL"))
    return plots


_NOTHING = pd.DataFrame(
    columns=["seeds", "mean", "low", "high"], index=pd.MultiIndex.from_tuples([], names=["metric", "step"]), dtype="float64"
)


def _batches(tables, column):
    """(step, mean over seeds) rows of the training batches; None where there are none."""
    tables = [table for table in tables if column in table]
    if not tables:
        return None
    return pd.concat(tables).groupby("step")[column].mean().reset_index().to_numpy()


def _picture(figure, title):
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "keras_bond"}):  # or its ids would be new every time
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return {"title": title, "source": "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue().encode()).decode()}


def _swatch(i):
    style = setting_style(i)
    dashes = style["linestyle"]
    return {"colour": style["color"], "dashes": "none" if dashes == "solid" else " ".join(str(2 * d) for d in dashes[1])}


def _shown(table, metric):
    """(mean, interval) of the last step, as text."""
    if table is None or metric not in table.index.levels[0]:
        return "", ""
    last = table.loc[metric].iloc[-1]
    return number(last["mean"]), "" if math.isnan(last["low"]) else f"{number(last['low'])} to {number(last['high'])}"


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


def _dicts(table):
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def _words(setting):
    return ", ".join(f"{key} = {value if isinstance(value, str) else json.dumps(value)}" for key, value in setting.items())


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
    unit = UNITS.get(metric, "reward")
    return label_of(metric) + ("" if unit in ("reward", "share") else f" ({unit})")


def number(value, sign=False):
    r"""Three places, and a minus that is one.

    >>> number(0.25, sign=True), number(-0.25) == "\N{MINUS SIGN}0.250"
    ('+0.250', True)
    """
    return f"{value:{'+' if sign else ''}.3f}".replace("-", "\N{MINUS SIGN}")
