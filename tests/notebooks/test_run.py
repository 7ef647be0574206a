"""`keras-bond run` as a person meets it."""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import keras
import pytest

from keras_bond import cli
from keras_bond.experiments import run as runner

pytestmark = pytest.mark.any_backend

BACKEND = keras.config.backend()
RUNNABLE = pytest.mark.skipif(BACKEND != "jax", reason="what runs a notebook knows no backend: once is enough")
PARAMETERS = 'steps = 3  # updates\nrate = None\nname = "a" * 2\noutput = "runs"'


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """`keras-bond run` in this process, from `tmp_path`: (exit status, stdout, last line of stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", BACKEND)

    def call(*arguments):
        status, message = 0, ""
        try:
            cli.main(["run", *map(str, arguments)])
        except SystemExit as error:
            status, message = (error.code, "") if isinstance(error.code, int) else (1, f"{error.code}\n")
        out, err = capsys.readouterr()
        return status, out, (err + message).splitlines()[-1] if err + message else ""

    return call


@RUNNABLE
def test_a_run_leaves_the_notebook_and_its_record(run, write_notebook, tmp_path):
    path = write_notebook(
        "small", PARAMETERS, "print(steps, rate, name, output)", "import os; print(os.environ['KERAS_BACKEND'])"
    )
    status, printed, progress = run(path, "-p", "steps", "-4", "-p", "rate", "3e-4", "--output", "new/folder")
    assert status == 0
    assert "Executing" in progress
    record = json.loads((tmp_path / "new" / "folder" / "run.json").read_text())
    assert printed.startswith(f"small: {record['seconds']:.0f} s. The executed notebook is new/folder/small.ipynb")
    assert record["parameters"] == {"steps": -4, "rate": 3e-4, "name": '"a" * 2', "output": "new/folder"}
    assert (record["notebook"], record["status"], record["error"], record["backend"]) == ("small", "ok", None, BACKEND)
    assert record["revision"] is None
    assert record["versions"]["keras"] == keras.__version__
    assert record["seconds"] > 0
    cells = json.loads((tmp_path / "new" / "folder" / "small.ipynb").read_text())["cells"]
    texts = ["".join(output["text"]) for cell in cells for output in cell["outputs"]]
    assert texts == ["-4 0.0003 aa new/folder\n", f"{BACKEND}\n"]


@RUNNABLE
def test_a_failing_cell_is_one_line_and_the_notebook_is_kept(run, write_notebook, tmp_path):
    path = write_notebook("broken", "steps = 3", "print('so far')", "raise ValueError('no\\nluck')", "print('never')")
    status, printed, message = run(path, "--output", "out")
    assert (status, printed) == (1, "")
    assert message == "keras-bond: broken, cell [3]: ValueError: no luck (see out/broken.ipynb)"
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["status"], record["error"]) == ("failed", "broken, cell [3]: ValueError: no luck")
    kept = (tmp_path / "out" / "broken.ipynb").read_text()
    assert "so far" in kept
    assert "never\\n" not in kept


@RUNNABLE
def test_a_kernel_that_dies_is_a_failed_run(run, write_notebook, tmp_path):
    path = write_notebook("dies", "steps = 3", "import os; os._exit(1)")
    status, _, message = run(path, "--output", "out")
    assert status == 1
    assert re.fullmatch(r"keras-bond: dies: DeadKernelError: .* \(see out/dies.ipynb\)", message)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "failed"


def test_an_interrupted_run_leaves_no_record(run, write_notebook, monkeypatch, tmp_path):
    def interrupt(*arguments, **keywords):
        raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text("of an earlier run")
    monkeypatch.setattr(runner.papermill, "execute_notebook", interrupt)
    assert run(write_notebook("small", "x = 1"), "--output", "out") == (1, "", "keras-bond: interrupted")
    assert not (tmp_path / "out" / "run.json").exists()


def test_an_unknown_parameter_lists_the_notebooks_own(run, write_notebook, tmp_path):
    path = write_notebook("small", PARAMETERS)
    message = "argument -p: expected a parameter of small (steps, rate, name, output), received 'stepps'"
    assert run(path, "-p", "stepps", "1", "--output", "out") == (2, "", f"keras-bond: {message}")
    assert not (tmp_path / "out").exists()


def test_a_notebook_without_parameters_says_so(run, write_notebook):
    message = "keras-bond: argument -p: expected a parameter of bare (it has none), received 'steps'"
    assert run(write_notebook("bare", "print(1)"), "-p", "steps", "1", "--output", "out") == (2, "", message)


def test_a_notebook_that_is_not_there(run, write_notebook, tmp_path):
    expected = "argument NOTEBOOK: expected an .ipynb file or a notebook in ./notebooks"
    assert run("03_tea", "--output", "out")[2] == f"keras-bond: {expected} (here there is none), received '03_tea'"
    (tmp_path / "notebooks").mkdir()
    write_notebook("01_first", "x = 1").rename(tmp_path / "notebooks" / "01_first.ipynb")
    assert run("03_tea", "--output", "out") == (2, "", f"keras-bond: {expected} (01_first), received '03_tea'")
    assert runner.find("01_first") == runner.find("01_first.ipynb") == pathlib.Path("notebooks/01_first.ipynb")


def test_a_file_that_is_no_notebook(run, tmp_path):
    (tmp_path / "x.ipynb").write_text("no")
    status, _, message = run("x.ipynb", "--output", "out")
    assert status == 2
    assert message.startswith("keras-bond: argument NOTEBOOK: 'x.ipynb' is not a notebook: ")


def test_the_notebook_is_not_overwritten_by_its_run(run, write_notebook):
    message = "argument --output: expected another folder than the notebook's own, received '.'"
    assert run(write_notebook("small", "x = 1"), "--output", ".") == (2, "", f"keras-bond: {message}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x"], "keras-bond run: the following arguments are required: --output"),
        (["x", "-p", "steps", "--output", "out"], "keras-bond run: argument -p: expected 2 arguments"),
        (["x", "--output", __file__], f"keras-bond: argument --output: expected a folder, {__file__} is a file"),
        (
            ["x", "--output", "out", "--backend", "mxnet"],
            "keras-bond: argument --backend: expected one of jax, tensorflow, torch, received 'mxnet'",
        ),
    ],
)
def test_wrong_arguments(run, arguments, message):
    assert run(*arguments) == (2, "", message)


@pytest.mark.parametrize("package", ["papermill", "ipykernel"])
def test_a_missing_package_says_how_to_install_it(run, monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    assert run("x", "--output", "out") == (2, "", f"keras-bond: run needs {package}: pip install 'keras-bond[notebooks]'")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("smoke", "smoke"),
        ("3", 3),
        ("-1", -1),
        ("3e-4", 3e-4),
        (".5", 0.5),
        ("010", 10),
        ("true", True),
        ("False", False),
        ("null", None),
        ("None", None),
        ("no", "no"),
        ("12:30", "12:30"),
        ("[1, 2]", [1, 2]),
        ('"3"', "3"),
        ("", ""),
    ],
)
def test_values(text, expected):
    value = runner.value(text)
    assert value == expected
    assert type(value) is type(expected)


def test_the_revision_is_that_of_the_notebook(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    assert re.fullmatch("[0-9a-f]{40}", runner.revision(tmp_path))
    (tmp_path / "x").write_text("1")
    subprocess.run([*git, "add", "x"], cwd=tmp_path, check=True)
    assert re.fullmatch("[0-9a-f]{40}-dirty", runner.revision(tmp_path))
    monkeypatch.setenv("PATH", "")
    assert runner.revision(tmp_path) is None


def test_papermill_is_not_loaded_by_other_commands():
    code = "import sys; from keras_bond import cli; cli._parser(); print('papermill' in sys.modules, 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False False\n"
