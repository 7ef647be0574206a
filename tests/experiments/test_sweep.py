"""`keras-bond sweep` as a person meets it: what runs, what is never run again, and what a mistake is told."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import filelock
import keras
import psutil
import pytest

from keras_bond import cli
from keras_bond.experiments import cell, report, spec, sweep

pytestmark = pytest.mark.any_backend

RUNNABLE = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="what runs a notebook knows no backend: once is enough"
)
RECORD = {
    "status": "ok",
    "error": None,
    "backend": "jax",
    "device": "abacus",
    "revision": "f00",
    "versions": {"python": "3"},
}


@pytest.fixture
def call(notebook, capsys, monkeypatch):
    """`call("sweep", ...)` in this process: (exit status, stdout, last line of stderr)."""
    monkeypatch.setenv("KERAS_BACKEND", keras.config.backend())

    def run(*arguments):
        status, message = 0, ""
        try:
            cli.main([*map(str, arguments)])
        except SystemExit as error:
            status, message = (error.code, "") if isinstance(error.code, int) else (1, f"{error.code}\n")
        out, err = capsys.readouterr()
        return status, out, (err + message).splitlines()[-1]

    return run


@pytest.fixture
def executed(monkeypatch):
    """Cells are not run but noted, and finished at once: the list of their names."""
    names = []

    def execute(task):
        folder = pathlib.Path(task["folder"])
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(RECORD))
        names.append(folder.name)

    monkeypatch.setattr(sweep, "_execute", execute)
    return names


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def wait_for(condition, seconds=60):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "it did not come"
        time.sleep(0.05)


def test_the_grid_with_its_seeds(write_spec):
    plan = spec.read(write_spec(grid={"eta": [0.05, 0.1], "anchor": ["ema", "hard"]}, parameters={"profile": "smoke"}))
    assert (plan.name, plan.title, plan.notebook.name, plan.keys) == ("ema", "ema", "tiny.ipynb", ["eta", "anchor"])
    assert list(plan.cells)[:3] == [
        "eta=0.05,anchor=ema,seed=0",
        "eta=0.05,anchor=ema,seed=1",
        "eta=0.05,anchor=hard,seed=0",
    ]
    assert len(plan.cells) == 8
    defaults = {"profile": "smoke", "broken": "", "tally": "", "pause": ""}
    assert plan.cells["eta=0.1,anchor=hard,seed=1"] == {**defaults, "eta": 0.1, "anchor": "hard", "seed": 1}


def test_a_list_of_grids_is_all_of_theirs_and_each_cell_once(write_spec):
    plan = spec.read(write_spec(grid=[{"eta": [0.1, 0.2]}, {"anchor": ["ema", "hard"]}], seeds=[7], findings=None))
    assert list(plan.cells) == [  # what a grid does not name is the notebook's
        "eta=0.1,anchor=ema,seed=7",
        "eta=0.2,anchor=ema,seed=7",
        "eta=0.1,anchor=hard,seed=7",
    ]


def test_without_a_grid_the_seeds_are_the_cells(write_spec):
    assert list(spec.read(write_spec(grid=None, findings=None)).cells) == ["seed=0", "seed=1"]


def test_a_number_is_one_however_yaml_writes_it(write_spec):
    path = write_spec(grid=None, findings=None)
    path.write_text(path.read_text() + "parameters: {eta: 3e-4}\n")
    assert spec.read(path).cells["seed=0"]["eta"] == 3e-4


@pytest.mark.parametrize(
    ("one", "other"),
    [("4", 4), ("a b", "a-b"), ("a b", "a/b"), ([1, 2], [1, 3]), ("x" * 300, "x" * 301), (None, "None"), (True, "True")],
)
def test_other_values_are_another_folder(one, other):
    first, second = (spec.cell_name({"a": value, "seed": 0}) for value in (one, other))
    assert first != second
    for name in (first, second):
        assert "/" not in name
        assert " " not in name
        assert len(name) < 100


FINDING = {"says": "x", "metric": "reward", "compare": [{"eta": 0.1}, {"eta": 0.05}], "claim": "higher"}
KEYS = "name, title, notebook, parameters, grid, seeds, findings"
TINY = "a parameter of tiny (profile, eta, anchor, broken, tally, pause)"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, f"`seed`: expected one of {KEYS}, received 'seed'; correct or remove it"),
        ({"name": None}, "`name`: expected a value, received none; add it"),
        ({"name": 3}, "`name`: expected text, received 3; write it in quotes if it is a number"),
        (
            {"notebook": "tea"},
            "`notebook`: expected an .ipynb file or a notebook in ./notebooks (here there is none), "
            "received 'tea'; correct it",
        ),
        ({"parameters": {"etta": 1}}, f"`parameters.etta`: expected {TINY}, received 'etta'; correct the name"),
        ({"grid": {"etta": [1, 2]}}, f"`grid.etta`: expected {TINY}, received 'etta'; correct the name"),
        ({"grid": {"seed": [1, 2]}}, "`grid.seed`: expected no such key, received [1, 2]; use `seeds`"),
        ({"parameters": {"output": "x"}}, "`parameters.output`: expected no such key, received 'x'; use --output"),
        ({"parameters": [1]}, "`parameters`: expected a mapping, received a list; write `NAME: VALUE` lines"),
        ({"grid": {"eta": 0.1}}, "`grid.eta`: expected a list of different values, received 0.1; write `eta: [a, b]`"),
        ({"grid": {"eta": [1, 1]}}, "`grid.eta`: expected a list of different values, received [1, 1]; write `eta: [a, b]`"),
        (
            {"seeds": [0, 0]},
            "`seeds`: expected a list of different integers of at least 0, received [0, 0]; write `seeds: [0, 1, 2]`",
        ),
        ({"seeds": 3}, "`seeds`: expected a list of different integers of at least 0, received 3; write `seeds: [0, 1, 2]`"),
        ({"findings": "x"}, "`findings`: expected a list, received 'x'; begin each finding with `- `"),
        (
            {"findings": [FINDING, {**FINDING, "claim": "bigger"}]},
            "`findings[1].claim`: expected one of higher, lower, equal, received 'bigger'; correct it",
        ),
        ({"findings": [{**FINDING, "says": None}]}, "`findings[0].says`: expected a value, received none; add it"),
        (
            {"findings": [{**FINDING, "claim": "equal"}]},
            "`findings[0].margin`: expected a number above 0, received None; "
            "say which difference would still count as equal",
        ),
        (
            {"findings": [{**FINDING, "margin": 1}]},
            "`findings[0].margin`: expected none with `claim: higher`, received 1; remove it, or claim `equal`",
        ),
        (
            {"findings": [{**FINDING, "at": "end"}]},
            "`findings[0].at`: expected an integer of at least 0 or final, received 'end'; name a step of evaluation.csv",
        ),
        (
            {"findings": [{**FINDING, "compare": [{"eta": 0.1}]}]},
            "`findings[0].compare`: expected two settings of the grid, received [{'eta': 0.1}]; "
            "write `[{eta: 0.1}, {eta: 0.01}]`",
        ),
        (
            {"findings": [{**FINDING, "compare": [{"eta": 0.1}, {"eta": 0.3}]}]},
            "`findings[0].compare`: expected a setting that the grid has, received {'eta': 0.3}; add its values to the grid",
        ),
        (
            {"findings": [{**FINDING, "compare": [{"n": 1}, {"n": 2}]}]},
            "`findings[0].compare`: expected parameters of the grid (eta), received 'n'; add it to the grid",
        ),
    ],
)
def test_a_wrong_spec_is_one_line(call, write_spec, tmp_path, changes, message):
    expected = (
        2,
        "",
        f"keras-bond: argument SPEC: spec.yaml, {message.replace('a mapping,', 'a mapping from parameters to values,')}",
    )
    assert call("sweep", write_spec(**changes), "--output", "out") == expected
    assert not (tmp_path / "out").exists()


def test_a_spec_that_is_none(call, tmp_path):
    assert call("sweep", "x.yaml", "--output", "out")[2].endswith(
        "expected a YAML file, received 'x.yaml', which is not there"
    )
    (tmp_path / "x.yaml").write_text("name: [")
    assert call("sweep", "x.yaml", "--output", "out")[2].startswith("keras-bond: argument SPEC: 'x.yaml' is not YAML: ")
    (tmp_path / "x.yaml").write_text("3")
    assert "expected a mapping with name, notebook and seeds, received 3" in call("sweep", "x.yaml", "--output", "out")[2]


def test_a_notebook_without_the_contracts_parameters(call, write_notebook, write_spec):
    write_notebook("bare", "seed = 0\noutput = 'x'")
    message = "`notebook`: expected one with the parameters seed, output, profile, received one with seed, output; "
    assert message + "add `profile` to its cell" in call("sweep", write_spec(notebook="bare.ipynb"), "--output", "out")[2]


def test_finished_cells_are_not_run_again_and_cells_may_be_added(call, write_spec, executed, tmp_path):
    status, printed, _ = call("sweep", write_spec(), "--output", "out", "--jobs", 2)
    assert (status, sorted(executed)) == (0, ["eta=0.05,seed=0", "eta=0.05,seed=1", "eta=0.1,seed=0", "eta=0.1,seed=1"])
    assert printed == "ema: 4 of 4 cells finished, 4 of them now. Their report: keras-bond report out\n"
    executed.clear()
    assert call("sweep", write_spec(), "--output", "out")[1].startswith("ema: 4 of 4 cells finished, 0 of them now.")
    assert executed == []
    assert call("sweep", write_spec(seeds=[0, 1, 2], name="more"), "--output", "out")[0] == 0
    assert executed == ["eta=0.05,seed=2", "eta=0.1,seed=2"]
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["name"] == "more"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"seeds": [1, 2]}, "the cell 'eta=0.05,seed=0' is missing"),
        ({"parameters": {"profile": "smoke"}}, "`profile` of the cell 'eta=0.05,seed=0' is 'smoke' and was 'full'"),
    ],
)
def test_another_sweep_is_refused(call, write_spec, executed, changes, what):
    call("sweep", write_spec(), "--output", "out")
    status, _, message = call("sweep", write_spec(**changes), "--output", "out")
    assert (status, len(executed)) == (2, 4)
    assert message == (
        "keras-bond: argument --output: expected the sweep that 'out' holds, with cells added at most, "
        f"received one in which {what}; choose another folder, or undo the change"
    )


def test_two_sweeps_into_one_folder_are_refused(call, write_spec, executed, tmp_path):
    (tmp_path / "out" / ".sweep").mkdir(parents=True)
    with filelock.FileLock(tmp_path / "out" / ".sweep" / "lock"):
        status, _, message = call("sweep", write_spec(), "--output", "out")
    assert (status, executed) == (2, [])
    assert message == (
        "keras-bond: argument --output: expected a folder of which no sweep is at work, received 'out'; wait for that one "
        "to end, or choose another folder"
    )
    assert call("sweep", write_spec(), "--output", "out")[0] == 0


def test_a_half_written_record_is_none(tmp_path):
    (tmp_path / "run.json").write_text('{"status": "ok"')
    assert not cell.finished(tmp_path)


def test_the_compiled_programs_are_shared_unless_the_user_has_a_place(monkeypatch, tmp_path):
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(name, raising=False)
    assert sweep._environment(tmp_path)["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "jax")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    assert sweep._environment(tmp_path)["JAX_COMPILATION_CACHE_DIR"] == "mine"


@RUNNABLE
def test_a_failed_cell_is_recorded_and_run_again_by_the_same_command(call, write_spec, notebook, tmp_path):
    tally = tmp_path / "tally"
    path = write_spec(seeds=[0], parameters={"tally": str(tally), "broken": "0.05"})
    status, printed, message = call("sweep", path, "--output", "out")
    assert (status, printed) == (1, "")
    error = "tiny, cell [3]: ValueError: eta 0.05 is broken"
    assert message == (
        "keras-bond: 1 of 2 cells finished, 1 of them now; 1 failed, and the same command runs them again: "
        f"eta=0.05,seed=0: {error}"
    )
    folder = tmp_path / "out" / "cells" / "eta=0.05,seed=0"
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], record["error"], record["parameters"]["eta"]) == ("failed", error, 0.05)
    assert {"revision", "versions", "device", "seconds", "backend"} <= record.keys()
    assert lines(tally) == ["ema 0.1 0"]

    notebook.write_text(notebook.read_text().replace("if str(eta) == broken", "if False"))
    assert call("sweep", path, "--output", "out")[:2] == (
        0,
        "ema: 2 of 2 cells finished, 1 of them now. Their report: keras-bond report out\n",
    )
    assert lines(tally) == ["ema 0.1 0", "ema 0.05 0"]
    assert json.loads((folder / "run.json").read_text())["status"] == "ok"
    assert sorted(p.name for p in folder.iterdir()) == [
        "best_of_n.csv",
        "evaluation.csv",
        "metrics.csv",
        "run.json",
        "tiny.ipynb",
    ]


@RUNNABLE
def test_a_notebook_that_writes_nothing_has_failed(call, write_notebook, write_spec):
    write_notebook("mute", "seed = 0\noutput = 'x'\nprofile = 'full'")
    path = write_spec(notebook="mute.ipynb", grid=None, findings=None, seeds=[0])
    status, _, message = call("sweep", path, "--output", "out")
    assert status == 1
    assert "seed=0: mute: wrote no metrics.csv, no evaluation.csv, no best_of_n.csv, which a sweep needs" in message


@RUNNABLE
def test_a_cell_whose_process_is_killed_is_recorded(call, write_notebook, write_spec, tmp_path):
    kill = "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nimport time\ntime.sleep(60)"
    write_notebook("killed", "seed = 0\noutput = 'x'\nprofile = 'full'", kill)
    path = write_spec(notebook="killed.ipynb", grid=None, findings=None, seeds=[0])
    status, _, message = call("sweep", path, "--output", "out")
    assert status == 1
    assert "again: seed=0: killed: the process of the cell was killed by SIGKILL" in message
    record = json.loads((tmp_path / "out" / "cells" / "seed=0" / "run.json").read_text())
    assert (record["status"], record["parameters"]["seed"]) == ("failed", 0)


@RUNNABLE
def test_a_sweep_killed_half_way_goes_on_and_reports_the_same(write_spec, tmp_path):
    """4 cells, SIGKILL while one is at work: its kernel dies too, the same command runs what is missing, nobody can tell."""
    tally, pause = tmp_path / "tally", tmp_path / "pause"
    path = write_spec(parameters={"tally": str(tally), "pause": str(pause)})
    names = list(spec.read(path).cells)
    command = [sys.executable, "-m", "keras_bond.cli", "sweep", str(path), "--output", "out"]
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(lines(tally)) >= 2)
    pause.touch()  # whichever cell is next stays at work
    wait_for((tmp_path / "paused").exists)
    done = len(lines(tally))
    assert 2 <= done < 4
    orphans = psutil.Process(process.pid).children(recursive=True)
    assert len(orphans) == 2  # the cell and its kernel
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert psutil.wait_procs(orphans, timeout=20)[1] == []
    assert finished(names, tmp_path) == names[:done]
    pause.unlink()

    resumed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert resumed.stdout.startswith(f"ema: 4 of 4 cells finished, {4 - done} of them now.")
    assert lines(tally) == [f"ema {eta} {seed}" for eta in (0.05, 0.1) for seed in (0, 1)]

    subprocess.run([*command[:-1], "whole", "--jobs", "2"], env=environment, capture_output=True, check=True)
    for folder in ("out", "whole"):
        report.run(tmp_path / folder)
    for name in ("results.csv", "intervals.csv", "report.html"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def finished(names, folder):
    return [name for name in names if cell.finished(folder / "out" / "cells" / name)]
