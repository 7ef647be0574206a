"""`keras-bond report`: verdicts from numbers whose intervals are known, and a page that says what it rests on."""

import base64
import html
import json
import math
import re
import warnings

import numpy as np
import pandas as pd
import pytest

from keras_bond import cli
from keras_bond.evaluation import Estimate, Evaluation
from keras_bond.experiments import findings, report
from keras_bond.experiments.findings import Interval, interval, verdict
from keras_bond.experiments.results import write_results
from keras_bond.experiments.spec import cell_name

pytestmark = pytest.mark.any_backend

pytestmark = pytest.mark.any_backend

RECORD = {
    "status": "ok",
    "error": None,
    "backend": "jax",
    "device": "abacus",
    "revision": "f00",
    "versions": {"python": "3"},
    "parameters": {"eta": 0.1, "n": 4, "profile": "full", "seed": 0, "output": "here"},
}
POINTS = "n,win_rate,reward,kl\n2,0.667,0.2,0.193\n4,0.8,0.4,0.636\n"
T2, T3 = 12.706204736, 4.302652730  # Student's t, 97.5 %, of 1 and 2 degrees of freedom: from a table


@pytest.fixture(autouse=True)
def _without_pictures(request, monkeypatch):
    """Drawing them takes a second: only the tests that look at them have some."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(report, "_plots", lambda *arguments: [])


@pytest.fixture
def pictures():
    """Asks for the report's pictures."""


@pytest.fixture
def write_sweep(tmp_path):
    """`write_sweep(rewards, findings)` -> folder; `rewards` is {(eta, seed): reward at the end}, None for a failed cell."""

    def write(rewards, findings=()):
        folder, cells = tmp_path / "sweep", {}
        for (eta, seed), reward in rewards.items():
            name = cell_name({"eta": eta, "seed": seed})
            cells[name] = {"eta": eta, "seed": seed}
            cell = folder / "cells" / name
            cell.mkdir(parents=True)
            if reward is None:
                (cell / "run.json").write_text(json.dumps({**RECORD, "status": "failed", "error": "<no> luck"}))
                continue
            (cell / "run.json").write_text(json.dumps(RECORD))
            rows = [f"{s},{reward * s / 20},{0.5 + s / 100},{s / 40},{s if s else ''}" for s in (0, 10, 20)]
            (cell / "evaluation.csv").write_text("step,reward,win_rate,kl,kl_efficiency\n" + "\n".join(rows))
            (cell / "metrics.csv").write_text("step,reward\n" + "\n".join(f"{s},{s * reward / 20}" for s in range(1, 21)))
            (cell / "best_of_n.csv").write_text(POINTS)
        plan = {"name": "etas", "title": "Which <eta>?", "notebook": "tiny", "keys": ["eta"]}
        (folder / "sweep.json").write_text(json.dumps({**plan, "cells": cells, "findings": list(findings), "spec": "a: &b"}))
        return folder

    return write


def finding(claim="higher", **changes):
    compare = [{"eta": 0.1}, {"eta": 0.01}]
    return {"figure": 6, "says": "Faster.", "metric": "reward", "compare": compare, "claim": claim, **changes}


def page(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


def test_students_interval():
    assert interval([1.0, 3.0]) == pytest.approx((2, 2 - T2, 2 + T2))  # s = sqrt(2), s / sqrt(2) = 1
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2, 2 - T3 / math.sqrt(3), 2 + T3 / math.sqrt(3)))
    assert interval([5.0, 5.0, 5.0]) == (5, 5, 5)
    assert interval([5.0]) == pytest.approx((5, np.nan, np.nan), nan_ok=True)


def test_the_interval_covers_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(3, 2, (2000, 4))
    covered = np.mean([low < 3 < high for _, low, high in map(interval, draws)])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


@pytest.mark.parametrize(
    ("claim", "low", "high", "margin", "expected"),
    [
        ("higher", 0.1, 0.3, None, "holds"),
        ("higher", -0.3, -0.1, None, "does not hold"),
        ("higher", -0.1, 0.3, None, "undecided"),
        ("higher", 0.0, 0.3, None, "undecided"),
        ("lower", -0.3, -0.1, None, "holds"),
        ("lower", 0.1, 0.3, None, "does not hold"),
        ("lower", -0.3, 0.1, None, "undecided"),
        ("equal", -0.1, 0.1, 0.1, "holds"),
        ("equal", 0.02, 0.08, 0.1, "holds"),
        ("equal", -0.1, 0.2, 0.1, "undecided"),
        ("equal", 0.11, 0.2, 0.1, "does not hold"),
        ("equal", -0.2, -0.11, 0.1, "does not hold"),
        ("equal", -1, 1, 0.1, "undecided"),
        *((claim, np.nan, np.nan, 0.1, "undecided") for claim in ("higher", "lower", "equal")),
    ],
)
def test_verdicts(claim, low, high, margin, expected):
    assert verdict(claim, Interval((low + high) / 2, low, high), margin) == expected


def test_seeds_are_paired(write_sweep, tmp_path):
    """Differences 0.1, 0.2, 0.3 in the last step; the seeds themselves differ by far more."""
    rewards = {(0.1, 0): 1.1, (0.1, 1): 5.2, (0.1, 2): 9.3, (0.01, 0): 1.0, (0.01, 1): 5.0, (0.01, 2): 9.0}
    claims = [
        finding(),
        finding("lower"),
        finding("equal", margin=0.5),
        finding("equal", margin=0.4),
        finding(at=10),
        finding(since=10),
    ]
    found = report.run(write_sweep(rewards, claims))
    half = T3 * 0.1 / math.sqrt(3)  # 0.2484
    assert found[0].difference == pytest.approx((0.2, 0.2 - half, 0.2 + half))
    assert found[4].difference == pytest.approx((0.1, 0.1 - half / 2, 0.1 + half / 2))
    assert found[5].difference == pytest.approx((0.1, 0.1 - half / 2, 0.1 + half / 2))
    assert [c.verdict for c in found] == ["undecided", "undecided", "holds", "undecided", "undecided", "undecided"]
    assert {c.seeds for c in found} == {3}


@pytest.mark.parametrize(("claim", "expected"), [("higher", "holds"), ("lower", "does not hold")])
def test_the_order_of_the_comparison_is_its_sign(write_sweep, claim, expected):
    rewards = {(0.1, s): 2 + s + 0.01 * s for s in range(3)} | {(0.01, s): 1.0 + s for s in range(3)}
    folder = write_sweep(rewards, [finding(claim)])
    (found,) = report.run(folder)
    assert found.verdict == expected
    assert f'<span class="verdict {expected.replace(" ", "-")}">{expected}</span>' in page(folder)


def test_what_the_settings_leave_open_is_paired_and_averaged():
    """Within a seed the mean over n of the differences: (1 + 3)/2 and (2 + 4)/2; a cell alone counts nowhere."""
    rewards = {(2, 0): (1, 2), (4, 0): (10, 13), (2, 1): (5, 7), (4, 1): (0, 4), (8, 1): (99, None)}
    cells, evaluations = {}, {}
    for (n, seed), pair in rewards.items():
        for eta, reward in zip((0.01, 0.1), pair, strict=True):
            if reward is not None:
                name = f"{eta} {n} {seed}"
                cells[name] = {"eta": eta, "n": n, "seed": seed}
                evaluations[name] = pd.DataFrame({"step": [0, 5], "reward": [0.0, reward]})
    found = findings.compare(finding(), cells, evaluations, ["eta", "n"])
    assert (found.difference.mean, found.seeds) == (2.5, 2)
    assert found.difference.high == pytest.approx(2.5 + T2 * 0.5)


def test_why_a_finding_is_undecided(write_sweep):
    rewards = {(0.1, 0): 2.0, (0.01, 0): 1.0, (0.01, 1): 1.0, (0.1, 1): None}
    claims = [finding(), finding(metric="wit"), finding(at=7), finding(metric="kl_efficiency", at=0)]
    folder = write_sweep(rewards, claims)
    found = report.run(folder)
    assert [(c.verdict, c.seeds) for c in found] == [("undecided", 1)] + [("undecided", 0)] * 3
    assert [c.why for c in found] == [
        "one seed has no interval",
        "evaluation.csv has no column wit",
        "evaluation.csv has no step 7, but 0, 10, 20",
        "kl_efficiency is empty at step 0",
    ]
    assert "Evaluation.csv has no column wit." in page(folder)


def test_the_tables(write_sweep):
    rewards = {(0.1, 0): 1.0, (0.1, 1): 3.0, (0.01, 0): 1.0, (0.01, 1): None}
    folder = write_sweep(rewards)
    report.run(folder)
    results = pd.read_csv(folder / "results.csv")
    assert list(results["cell"]) == ["eta=0.1,seed=0", "eta=0.1,seed=1", "eta=0.01,seed=0", "eta=0.01,seed=1"]
    assert list(results["status"]) == ["ok", "ok", "ok", "failed"]
    assert results["reward"].tolist() == pytest.approx([1, 3, 1, np.nan], nan_ok=True)
    assert results["step"].tolist() == pytest.approx([20, 20, 20, np.nan], nan_ok=True)
    table = pd.read_csv(folder / "intervals.csv").set_index(["setting", "metric", "step"])
    assert tuple(table.loc[("eta=0.1", "reward", 20)]) == pytest.approx((2, 2, 2 - T2, 2 + T2))
    assert tuple(table.loc[("eta=0.1", "reward", 10)]) == pytest.approx((2, 1, 1 - T2 / 2, 1 + T2 / 2))
    assert tuple(table.loc[("eta=0.01", "reward", 20)]) == pytest.approx((1, 1, np.nan, np.nan), nan_ok=True)
    assert ("eta=0.1", "kl_efficiency", 0) not in table.index
    text = page(folder)
    assert '<td>2.000<span class="range">\N{MINUS SIGN}10.706 to 14.706</span></td>' in text
    assert "Best-of-4 of the reference</td><td></td><td>0.400</td><td>0.800</td><td>0.636</td><td></td>" in text


def test_a_parameter_may_have_a_metrics_name(write_sweep):
    folder = write_sweep({(0.1, 0): 1.0})
    plan = json.loads((folder / "sweep.json").read_text())
    plan["keys"] = ["reward"]
    for parameters in plan["cells"].values():
        parameters["reward"] = "vader"
    (folder / "sweep.json").write_text(json.dumps(plan))
    report.run(folder)
    assert pd.read_csv(folder / "results.csv").loc[0, ["parameter_reward", "reward"]].tolist() == ["vader", 1.0]


ODD = [
    "$x_$",
    "$\\frac$",
    None,
    True,
    [1, "\N{LATIN SMALL LETTER E WITH ACUTE}"],
    "_hidden",
    "<b>",
    "two\nlines",
    "1",
    1,
    1.0,
]
ODD += ["\N{CJK UNIFIED IDEOGRAPH-65E5}", "", math.inf, "x" * 300 + "a", "x" * 300 + "b"]


def test_any_value_of_a_grid_is_shown_as_it_is_typed(write_sweep, pictures):
    claims = [finding(compare=[{"eta": "$x_$"}, {"eta": None}], metric="scores/$a_$", says="$y_$ <&>")]
    folder = write_sweep({(str(i), 0): float(i) for i in range(len(ODD))}, [])
    plan, names = json.loads((folder / "sweep.json").read_text()), {}
    for value, old in zip(ODD, list(plan["cells"]), strict=True):
        names[cell_name({"eta": value, "seed": 0})] = {"eta": value, "seed": 0}
        cell = (folder / "cells" / old).rename(folder / "cells" / [*names][-1])
        (cell / "evaluation.csv").write_text("step,scores/$a_$\n0,1\n10,2\n")
    (folder / "sweep.json").write_text(json.dumps({**plan, "cells": names, "title": "$t_$", "findings": claims}))
    with warnings.catch_warnings(action="error"):
        report.run(folder)
    text = html.unescape(page(folder))
    labels = re.findall(r"</svg>eta = (.*?)</td>", text)
    ends = ["x" * 48 + r"\.\.\. [0-9a-f]{6}"] * 2
    expected = ["$x_$", "$\\frac$", "null", "true", '[1, "\N{LATIN SMALL LETTER E WITH ACUTE}"]', "_hidden", "<b>"]
    expected += ['"two\\nlines"', '"1"', "1", "1.0", "\N{CJK UNIFIED IDEOGRAPH-65E5}", '""', "Infinity"]
    assert labels[:-2] == expected
    assert all(re.fullmatch(end, label) for end, label in zip(ends, labels[-2:], strict=True))
    assert len({*labels}) == len(ODD)
    assert "<h1>$t_$</h1>" in text
    assert "$y_$ <&>" in text
    assert (folder / "figures" / "scores_a_against_the_update.png").is_file()
    assert pd.read_csv(folder / "results.csv", keep_default_na=False, dtype=str)["eta"].tolist()[:4] == expected[:4]


def test_figures_that_are_infinite_or_missing(write_sweep, pictures):
    """An infinite one makes the mean infinite and leaves no interval; a missing one is said to be missing."""
    seeds = {0: 2.0, 1: math.inf, 2: 3.0}
    folder = write_sweep({(0.1, s): r for s, r in seeds.items()} | {(0.01, s): math.nan if s else 1.0 for s in seeds})
    plan = json.loads((folder / "sweep.json").read_text())
    plan["findings"] = [finding(), finding(metric="word")]
    (folder / "sweep.json").write_text(json.dumps(plan))
    for path in folder.glob("cells/*/evaluation.csv"):
        header, *rows = path.read_text().splitlines()
        path.write_text("\n".join([f"{header},word", *(f"{row},much" for row in rows)]))
        (path.parent / "best_of_n.csv").write_text("n,win_rate,reward,kl\n2,0.667,inf,0.193\n4,,-inf,nan\n")
    with warnings.catch_warnings(action="error"):
        found = report.run(folder)
    assert [(c.verdict, c.seeds, c.why) for c in found] == [
        ("undecided", 1, "reward is inf at step final"),
        ("undecided", 0, "word is much at step final"),
    ]
    text = page(folder)
    assert '<td>inf<span class="range"></span></td>' in text
    assert '<td>1.000<span class="range">1 of 3 seeds</span></td>' in text
    table = pd.read_csv(folder / "intervals.csv").set_index(["setting", "metric", "step"])
    assert tuple(table.loc[("eta=0.1", "reward", 20)]) == pytest.approx((3, math.inf, np.nan, np.nan), nan_ok=True)
    assert tuple(table.loc[("eta=0.01", "reward", 20)]) == pytest.approx((1, 1, np.nan, np.nan), nan_ok=True)


def test_the_last_evaluation_is_that_of_each_seed(write_sweep):
    """A run that ends early counts with its last one, and no earlier figure stands for one that is missing at the end."""
    folder = write_sweep({(0.1, 0): 1.0, (0.1, 1): 3.0})
    path = folder / "cells" / "eta=0.1,seed=1" / "evaluation.csv"
    path.write_text("step,reward,win_rate,kl\n0,0,0.5,1\n10,5,0.75,\n")
    report.run(folder)
    row = next(line for line in page(folder).splitlines() if "</svg>eta = 0.1</td>" in line and "<tr>" in line)
    minus = "\N{MINUS SIGN}"
    low, high = (f"{3 + sign * 2 * T2:.3f}".replace("-", minus) for sign in (-1, 1))
    assert f'<td>3.000<span class="range">{low} to {high}</span></td>' in row
    assert '<td>0.500<span class="range">1 of 2 seeds</span></td>' in row  # the KL of seed 0 at step 20


def test_cells_of_other_programs_are_not_averaged(write_sweep):
    folder = write_sweep({(0.1, 0): 1.0, (0.1, 1): 3.0, (0.1, 2): 50.0})
    plan = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps({**plan, "sources": {"notebook": "new1", "keras_bond": "new2"}}))
    for seed, made_by in enumerate(
        ({"notebook": "new1", "keras_bond": "new2"},) * 2 + ({"notebook": "old", "keras_bond": "new2"},)
    ):
        path = folder / "cells" / f"eta=0.1,seed={seed}" / "run.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "sources": made_by}))
    report.run(folder)
    text = page(folder)
    assert '<td>2.000<span class="range">' in text
    assert "<td>tiny, digest of its code: new1</td>" in text
    assert "<td>digest of its code: new2</td>" in text
    assert "made by other sources (notebook old, keras_bond new2): run the sweep again with --rerun" in text
    assert pd.read_csv(folder / "results.csv")["status"].tolist() == ["ok", "ok", "outdated"]


def test_parameters_that_differ_between_cells_are_all_named(write_sweep):
    folder = write_sweep({(0.1, 0): 1.0, (0.1, 1): 2.0})
    path = folder / "cells" / "eta=0.1,seed=1" / "run.json"
    path.write_text(json.dumps({**RECORD, "parameters": {**RECORD["parameters"], "n": None}}))
    report.run(folder)
    assert "<td>n = 4 or n = null; profile = full</td>" in page(folder)


def test_the_page_needs_nothing_and_hides_nothing(write_sweep, pictures):
    folder = write_sweep({(0.1, 0): 1.0, (0.1, 1): 2.0, (0.01, 0): 1.0, (0.01, 1): None}, [finding()])
    report.run(folder)
    text = page(folder)
    assert re.findall(r'(?:src|href)="(?!data:)[^"]*"|url\(|@import|<script|<link', text) == []
    assert "<h1>Which &lt;eta&gt;?</h1>" in text
    assert "tiny, 2 settings, seeds 0, 1: 3 of 4 runs finished." in text
    assert "1 of 4 runs has no result" in text
    assert "<td>eta=0.01,seed=1</td><td>failed</td><td>&lt;no&gt; luck</td>" in text
    assert "n = 4; profile = full" in text
    assert "a: &amp;b" in text
    assert "<td>f00</td>" in text
    pictures = re.findall(r'src="data:image/svg\+xml;base64,([^"]*)" alt="([^"]*)"', text)
    assert [alt.split(",")[0] for _, alt in pictures] == [
        "Reward against the update",
        "KL against the update",
        "Win rate against the update",
        "Win rate against KL",
        "Reward against KL",
    ]
    assert all(b"<svg" in base64.b64decode(source) for source, _ in pictures)
    files = {f"{alt.split(',')[0].lower().replace(' ', '_')}.png" for _, alt in pictures}
    assert {path.name for path in (folder / "figures").iterdir()} == files
    assert all((folder / "figures" / name).read_bytes().startswith(b"\x89PNG") for name in files)


def test_a_setting_without_a_result_keeps_its_place(write_sweep):
    folder = write_sweep({(0.1, 0): None, (0.1, 1): None, (0.01, 0): 1.0, (0.01, 1): 2.0}, [finding()])
    (found,) = report.run(folder)
    assert (found.verdict, found.why) == ("undecided", "no seed is finished in both settings")
    first, second = re.findall(r'stroke="(#\w+)"[^>]*/></svg>eta = ([\d.]+)</td><td>(\d)', page(folder))
    assert (first, second) == (("#2b6cb0", "0.1", "0"), ("#c05621", "0.01", "2"))
    assert set(pd.read_csv(folder / "intervals.csv")["setting"]) == {"eta=0.01"}


def test_the_same_sweep_is_the_same_report(write_sweep, pictures):
    folder = write_sweep({(eta, seed): eta + seed for eta in (0.1, 0.01) for seed in (0, 1)}, [finding()])
    files = []
    for _ in range(2):
        report.run(folder)
        files.append(
            [
                (folder / name).read_bytes()
                for name in ("report.html", "results.csv", "intervals.csv", "figures/kl_against_the_update.png")
            ]
        )
    assert files[0] == files[1]


def test_one_seed_has_no_interval_and_the_page_says_so(write_sweep):
    folder = write_sweep({(0.1, 0): 1.0, (0.01, 0): 0.5})
    report.run(folder)
    assert "One seed has no interval over seeds: none is given" in page(folder)
    assert '<td>1.000<span class="range"></span></td>' in page(folder)


def test_two_seeds_are_not_warned_about(write_sweep):
    folder = write_sweep({(0.1, 0): 1.0, (0.1, 1): 0.5})
    report.run(folder)
    assert "no interval over seeds" not in page(folder)
    assert "no result" not in page(folder)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "sweep.json").unlink(), "expected the folder of a sweep, received '{f}', which has no sweep.json"),
        (
            lambda f: (f / "cells" / "eta=0.1,seed=0" / "run.json").unlink(),
            "expected a sweep with a finished cell, '{f}' has none; run the sweep again",
        ),
        (
            lambda f: (f / "cells" / "eta=0.1,seed=0" / "evaluation.csv").write_text("a,b\n1,2\n"),
            "'{f}/cells/eta=0.1,seed=0/evaluation.csv': expected rows with a column `step` of distinct integers, received "
            "['a', 'b'], []",
        ),
        (
            lambda f: (f / "cells" / "eta=0.1,seed=0" / "evaluation.csv").write_text("step,reward\n0,1\n0,2\n"),
            "'{f}/cells/eta=0.1,seed=0/evaluation.csv': expected rows with a column `step` of distinct integers, received "
            "['step', 'reward'], [0.0, 0.0]",
        ),
        (
            lambda f: (f / "cells" / "eta=0.1,seed=0" / "evaluation.csv").write_text("step,reward\n0,1\n0.5,2\n"),
            "'{f}/cells/eta=0.1,seed=0/evaluation.csv': expected rows with a column `step` of distinct integers, received "
            "['step', 'reward'], [0.0, 0.5]",
        ),
        (
            lambda f: (f / "cells" / "eta=0.1,seed=0" / "metrics.csv").write_text(""),
            "'{f}/cells/eta=0.1,seed=0/metrics.csv' is no table: No columns to parse from file",
        ),
    ],
)
def test_a_folder_that_is_no_sweep(write_sweep, break_it, message, capsys):
    folder = write_sweep({(0.1, 0): 1.0})
    break_it(folder)
    with pytest.raises(SystemExit) as error:
        cli.main(["report", str(folder)])
    assert error.value.code == 2
    assert capsys.readouterr().err == f"keras-bond: argument DIR: {message.format(f=folder)}\n"


def test_the_command_says_what_it_found(write_sweep, capsys):
    rewards = {(0.1, s): 2 + s + 0.01 * s for s in range(3)} | {(0.01, s): 1.0 + s for s in range(3)}
    folder = write_sweep(rewards, [finding(), finding("lower"), finding(metric="wit")])
    cli.main(["report", str(folder)])
    assert capsys.readouterr().out.startswith("etas: 6 of 6 cells; findings: 1 holds, 1 does not hold, 1 undecided.\n")


def test_what_a_notebook_writes(tmp_path):
    estimates = {"reward": Estimate(0.5, 0.4, 0.6), "kl_efficiency": Estimate(math.nan, math.nan, math.nan)}
    path = [(0, Evaluation(estimates, None, None, [])), (5, Evaluation({"reward": Estimate(1.0, 0.5, 2.0)}, None, None, []))]
    write_results(tmp_path / "new", [{"step": 1, "reward": 0.25}], path, [{"n": 2, "win_rate": 0.6, "reward": 1, "kl": 0.2}])
    assert (tmp_path / "new" / "metrics.csv").read_text() == "step,reward\n1,0.25\n"
    assert (tmp_path / "new" / "evaluation.csv").read_text() == (
        "step,reward,reward_low,reward_high,kl_efficiency,kl_efficiency_low,kl_efficiency_high\n"
        "0,0.5,0.4,0.6,,,\n5,1.0,0.5,2.0,,,\n"
    )
    assert (tmp_path / "new" / "best_of_n.csv").read_text() == "n,win_rate,reward,kl\n2,0.6,1,0.2\n"
    assert (tmp_path / "new" / "device.txt").read_text().strip()
