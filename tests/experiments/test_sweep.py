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
from keras_bond.experiments import notebook as notebooks
from keras_bond.experiments import report, spec, sweep
from keras_bond.experiments.provenance import record_of, sources_of

pytestmark = pytest.mark.any_backend

pytestmark = pytest.mark.any_backend

RUNNABLE = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="what runs a notebook knows no backend: once is enough"
)
RECORD = {"status": "ok", "error": None, "backend": "jax", "device": "abacus", "revision": "f00"}
RECORD |= {"versions": {"python": "3"}, "parameters": {}}


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
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(json.dumps(RECORD | {"sources": task["sources"]}))
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
    assert (plan.name, plan.title, plan.notebook.path.name, plan.keys) == ("ema", "ema", "tiny.ipynb", ["eta", "anchor"])
    assert list(plan.cells)[:3] == [
        "eta=0.05,anchor=ema,seed=0",
        "eta=0.05,anchor=ema,seed=1",
        "eta=0.05,anchor=hard,seed=0",
    ]
    assert len(plan.cells) == 8
    assert plan.cells["eta=0.1,anchor=hard,seed=1"] == {"eta": 0.1, "anchor": "hard", "seed": 1}
    assert plan.given["eta=0.1,anchor=hard,seed=1"] == {"profile": "smoke", "eta": 0.1, "anchor": "hard", "seed": 1}


def test_a_list_of_grids_is_all_of_theirs_and_each_cell_once(write_spec):
    plan = spec.read(write_spec(grid=[{"eta": [0.1, 0.2]}, {"anchor": ["ema", "hard"]}], seeds=[7], findings=None))
    assert list(plan.cells) == [  # what a grid does not name is the notebook's
        "eta=0.1,anchor=ema,seed=7",
        "eta=0.2,anchor=ema,seed=7",
        "eta=0.1,anchor=hard,seed=7",
    ]


def test_what_nobody_set_is_shown_and_not_given(write_spec):
    plan = spec.read(
        write_spec(grid=[{"eta": [0.2]}, {"anchor": ["hard"]}], parameters={"eta": 0.3}, seeds=[7], findings=None)
    )
    assert plan.cells["eta=0.2,anchor=ema,seed=7"] == {"eta": 0.2, "anchor": "ema", "seed": 7}
    assert plan.given == {
        "eta=0.2,anchor=ema,seed=7": {"eta": 0.2, "seed": 7},  # `ema` is the notebook's own
        "eta=0.3,anchor=hard,seed=7": {"eta": 0.3, "anchor": "hard", "seed": 7},
    }


def test_a_default_that_is_no_literal_has_no_place_in_a_grid(call, write_notebook, write_spec):
    write_notebook("tiny", "profile = 'full'\nseed = 0\noutput = 'x'\nlr = 3 * 1e-4\nn = 1")
    path = write_spec(grid=[{"lr": [0.1]}, {"n": [2]}], findings=None)
    assert call("sweep", path, "--output", "out")[2] == (
        "keras-bond: argument SPEC: spec.yaml, `grid.lr`: expected a value in each grid, since the notebook's own is no "
        "literal, received none beside n; add it to that grid, or to `parameters`"
    )
    assert list(spec.read(write_spec(grid=[{"n": [2]}], findings=None)).given["n=2,seed=0"]) == ["n", "seed"]


def test_without_a_grid_the_seeds_are_the_cells(write_spec):
    assert list(spec.read(write_spec(grid=None, findings=None)).cells) == ["seed=0", "seed=1"]


def test_a_number_is_one_however_yaml_writes_it(write_spec):
    path = write_spec(grid=None, findings=None)
    path.write_text(path.read_text() + "parameters: {eta: 3e-4}\n")
    assert spec.read(path).parameters == {"eta": 3e-4}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(
            ("4", 4),
            ("a b", "a-b"),
            ("a b", "a/b"),
            ([1, 2], [1, 3]),
            ("x" * 300, "x" * 301),
            (None, "None"),
            (True, "True"),
        ),
        *((1, 1.0), (1, True), ("ema", "EMA"), ("\N{LATIN SMALL LETTER E WITH ACUTE}", "e\N{COMBINING ACUTE ACCENT}")),
        *(("$x_$", "$x$"), ("", None), (float("nan"), float("inf")), ("inf", float("inf")), ({"a": 1}, {"a": "1"})),
    ],
)
def test_other_values_are_another_folder(one, other):
    first, second = (spec.cell_name({"a": value, "seed": 0}) for value in (one, other))
    assert first.lower() != second.lower()  # nor are they one where a file system knows no case
    assert spec.label_of({"a": one}) != spec.label_of({"a": other})
    assert [spec.matches({"a": one}, {"a": value}) for value in (one, other)] == [True, False]
    for name in (first, second):
        assert "/" not in name
        assert " " not in name
        assert len(name.encode()) < 100


def test_a_name_is_never_too_long_for_a_file():
    name = spec.cell_name({"\N{GREEK SMALL LETTER ALPHA}" * 80 + str(i): "x" * 50 for i in range(3)})
    assert len(f"{name}.json".encode()) <= 255


FINDING = {"says": "x", "metric": "reward", "compare": [{"eta": 0.1}, {"eta": 0.05}], "claim": "higher"}
KEYS = "name, title, notebook, parameters, grid, seeds, findings"
TINY = "a parameter of tiny (profile, eta, anchor, mishap, tally, pause)"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, f"`seed`: expected one of {KEYS}, received 'seed'; correct or remove it"),
        ({"name": None}, "`name`: expected a value, received none; add it"),
        ({"name": " "}, "`name`: expected text, received ' '; write it in quotes if it is a number"),
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
        (
            {"parameters": {"eta": {1: 2}}},
            "`parameters.eta`: expected numbers, text, true, false, null, or lists of them, or mappings from text to them, "
            "received {1: 2}; write it in quotes",
        ),
        (
            {"parameters": [1]},
            "`parameters`: expected a mapping from parameters to values, received a list; write `NAME: VALUE` lines",
        ),
        ({"grid": {"eta": []}}, "`grid.eta`: expected a list of different values, received []; write `eta: [a, b]`"),
        ({"grid": {"eta": 0.1}}, "`grid.eta`: expected a list of different values, received 0.1; write `eta: [a, b]`"),
        ({"grid": {"eta": [1, 1]}}, "`grid.eta`: expected a list of different values, received [1, 1]; write `eta: [a, b]`"),
        (
            {"seeds": [0, 0]},
            "`seeds`: expected a list of different integers of at least 0, received [0, 0]; write `seeds: [0, 1, 2]`",
        ),
        (
            {"seeds": []},
            "`seeds`: expected a list of different integers of at least 0, received []; write `seeds: [0, 1, 2]`",
        ),
        (
            {"seeds": [0, -1]},
            "`seeds`: expected a list of different integers of at least 0, received [0, -1]; write `seeds: [0, 1, 2]`",
        ),
        ({"seeds": 3}, "`seeds`: expected a list of different integers of at least 0, received 3; write `seeds: [0, 1, 2]`"),
        ({"findings": "x"}, "`findings`: expected a list, received 'x'; begin each finding with `- `"),
        (
            {"findings": ["x"]},
            "`findings[0]`: expected a mapping, received 'x'; give it says, metric, compare, claim",
        ),
        (
            {"findings": [{**FINDING, "metrics": "x"}]},
            "`findings[0].metrics`: expected one of at, claim, compare, figure, margin, metric, says, since, received "
            "'metrics'; correct or remove it",
        ),
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
            {"findings": [{**FINDING, "figure": [6]}]},
            "`findings[0].figure`: expected a number or text, received [6]; write it in quotes",
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
            {"findings": [{**FINDING, "compare": [{"eta": 0.1}, {"anchor": "ema"}]}]},
            "`findings[0].compare`: expected two settings of the same parameters, received "
            "[{'eta': 0.1}, {'anchor': 'ema'}]; name them in both",
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
    expected = f"keras-bond: argument SPEC: spec.yaml, {message}"
    assert call("sweep", write_spec(**changes), "--output", "out") == (2, "", expected)
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
        ({"parameters": {"profile": "smoke"}}, "`profile` is smoke and was not set"),
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


def test_cells_of_two_programs_are_refused_or_run_again(call, write_spec, notebook, executed, monkeypatch):
    """A sweep is extended by a seed after its notebook, and then the package, was edited."""
    call("sweep", write_spec(seeds=[0]), "--output", "out")
    before = sources_of(notebooks.read(notebook))
    node = json.loads(notebook.read_text())
    node["cells"][1]["source"] += "\n# edited"
    notebook.write_text(json.dumps(node))
    now = sources_of(notebooks.read(notebook))
    path, tail = write_spec(seeds=[0, 1]), "; add --rerun to run them again, choose another folder, or undo the change"
    expected = "expected finished cells of the present notebook and keras_bond, received 2 of others: the notebook tiny is "
    assert call("sweep", path, "--output", "out") == (
        2,
        "",
        f"keras-bond: argument --output: {expected}{now['notebook']} and was {before['notebook']}{tail}",
    )
    assert len(executed) == 2
    executed.clear()
    assert call("sweep", path, "--output", "out", "--rerun")[0] == 0
    assert sorted(executed) == ["eta=0.05,seed=0", "eta=0.05,seed=1", "eta=0.1,seed=0", "eta=0.1,seed=1"]
    executed.clear()
    assert call("sweep", path, "--output", "out", "--rerun")[0] == 0  # nothing is left to run
    assert executed == []

    monkeypatch.setattr(sweep, "sources_of", lambda notebook: now | {"keras_bond": "edited"})
    message = call("sweep", path, "--output", "out")[2]
    assert message.endswith(f"received 4 of others: keras_bond is edited and was {now['keras_bond']}{tail}")


def test_cells_from_before_programs_were_recorded_are_others(call, write_spec, executed, tmp_path):
    call("sweep", write_spec(seeds=[0]), "--output", "out")
    for path in (tmp_path / "out").glob("cells/*/run.json"):
        path.write_text(json.dumps(RECORD))
    assert "and was unknown and keras_bond is" in call("sweep", write_spec(seeds=[0]), "--output", "out")[2]


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
    assert record_of(tmp_path) is None


def test_the_compiled_programs_are_shared_unless_the_user_has_a_place(monkeypatch, tmp_path):
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(name, raising=False)
    assert sweep._environment(tmp_path)["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "jax")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    assert sweep._environment(tmp_path)["JAX_COMPILATION_CACHE_DIR"] == "mine"


@RUNNABLE
def test_cells_that_fail_are_recorded_and_the_others_go_on(call, write_spec, tmp_path):
    path = write_spec(grid={"mishap": ["", "raises", "mute", "killed"]}, findings=None, seeds=[0])
    status, printed, message = call("sweep", path, "--output", "out", "--jobs", "2")
    assert (status, printed) == (1, "")
    again = "1 of 4 cells finished, 1 of them now; 3 failed, and the same command runs them again: "
    assert message == f"keras-bond: {again}mishap=raises,seed=0: tiny, cell [3]: ValueError: eta 0.1 is broken (and 2 more)"
    records = [record_of(tmp_path / "out" / "cells" / name) for name in spec.read(path).cells]
    assert [record["status"] for record in records] == ["ok", "failed", "failed", "failed"]
    assert [record["error"] for record in records[:3]] == [
        None,
        "tiny, cell [3]: ValueError: eta 0.1 is broken",
        "tiny: wrote no metrics.csv, no evaluation.csv, no best_of_n.csv, which a sweep needs: see experiments.results",
    ]
    assert records[3]["error"].startswith("tiny: the process of the cell was killed by SIGKILL")
    for record in records:
        assert {"revision", "versions", "device", "seconds", "backend"} <= record.keys()
        assert record["sources"] == sources_of(notebooks.read("tiny.ipynb"))
    assert records[0]["parameters"] | {"output": ""} == {
        **{"profile": "full", "eta": 0.1, "anchor": "ema", "mishap": "", "tally": "", "pause": "", "seed": 0, "output": ""},
    }
    whole = tmp_path / "out" / "cells" / spec.cell_name({"mishap": "", "seed": 0})
    names = ["best_of_n.csv", "evaluation.csv", "metrics.csv", "run.json", "tiny.ipynb"]
    assert sorted(path.name for path in whole.iterdir()) == names


@RUNNABLE
def test_a_sweep_stopped_half_way_goes_on_and_reports_the_same(write_spec, tmp_path, monkeypatch, interruptible):
    """SIGKILL, then Ctrl-C, while the second of two cells is at work: its kernel ends too, and nobody can tell later."""
    monkeypatch.setattr(report, "_plots", lambda *arguments: [])
    tally, pause = tmp_path / "tally", tmp_path / "pause"
    path = write_spec(seeds=[0], parameters={"tally": str(tally), "pause": str(pause)})
    command = [sys.executable, "-m", "keras_bond.cli", "sweep", str(path), "--output", "out"]
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    folders = [tmp_path / "out" / "cells" / name for name in spec.read(path).cells]
    for stop, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 1)):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible)
        wait_for(lambda: lines(tally) == ["ema 0.05 0"])
        pause.touch()  # the next cell stays at work
        wait_for((tmp_path / "paused").exists)
        orphans = psutil.Process(process.pid).children(recursive=True)
        assert len(orphans) == 2  # the cell and its kernel
        process.send_signal(stop)
        message = process.communicate(timeout=120)[1].splitlines()[-1]
        assert process.returncode == status
        assert psutil.wait_procs(orphans, timeout=20)[1] == []
        assert [record_of(folder) and record_of(folder)["status"] for folder in folders] == ["ok", None]
        pause.unlink()
        (tmp_path / "paused").unlink()
    assert message == "keras-bond: interrupted: 1 of 2 cells finished; the same command runs the others"

    resumed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert resumed.stdout.startswith("ema: 2 of 2 cells finished, 1 of them now.")
    assert lines(tally) == ["ema 0.05 0", "ema 0.1 0"]

    subprocess.run([*command[:-1], "whole", "--jobs", "2"], env=environment, capture_output=True, check=True)
    for folder in ("out", "whole"):
        report.run(tmp_path / folder)
    for name in ("results.csv", "intervals.csv", "report.html"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
