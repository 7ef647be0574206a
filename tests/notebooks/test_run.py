"""`keras-bond run` as a person meets it."""

import importlib.util
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import keras
import nbformat
import numpy as np
import psutil
import pytest

from keras_bond import cli
from keras_bond.experiments import notebook as notebooks
from keras_bond.experiments import provenance
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


DEFAULTS = '''import numpy as np
steps = 3  # updates
rate = None
template = "### Task: {x}"
lr = 3 * 1e-4
text = """two
lines"""
equal: str = ("a=b"  # c = d
              "c")
wide: np.float32 = np.float32(0.5)
low, high = 1, [None, {"a": float("inf")}]
output = "runs"'''
WORD = "q\"'\\\n{} $x_$ \N{SNOWMAN}"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A notebook of another machine in a folder with an odd name, run once: what it wrote there, and what was printed."""
    here = tmp_path_factory.mktemp("odd")
    cells = [
        nbformat.v4.new_code_cell(DEFAULTS, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("given = (steps, rate, template, lr, text, equal, wide, low, high, output)\nsteps = 99"),
        nbformat.v4.new_code_cell("1 / 0", metadata={"tags": ["raises-exception"]}),
        nbformat.v4.new_code_cell(
            "import json, os, sys\nfrom ipykernel.connect import get_connection_info\n"
            "its = sys.executable, os.environ['KERAS_BACKEND'], json.loads(get_connection_info())['transport']\n"
            "print(repr((given, its)))"
        ),
    ]
    kernel = {"name": "conda-env-other-py", "display_name": "Python [conda env:other]", "language": "python"}
    path = here / "odd {y} what?.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    (here / "kernels" / "python3").mkdir(parents=True)  # the machine's own is of no use either
    (here / "kernels" / "python3" / "kernel.json").write_text(
        '{"argv": ["false"], "display_name": "no", "language": "python"}'
    )
    output = here / f"out {{x}} {WORD.strip()}"
    arguments = ["-p", "steps", "-4", "-p", "rate", "-1e-3", "-p", "high", json.dumps(WORD), "-p", "low", "-Infinity"]
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JUPYTER_PATH": str(here)}
    command = [sys.executable, "-m", "keras_bond.cli", "run", path.name, *arguments, "--output", output.name]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return output, done


@RUNNABLE
def test_a_run_leaves_the_notebook_and_its_record(executed):
    output, done = executed
    record = provenance.record_of(output)
    assert set(output.iterdir()) == {output / "odd {y} what?.ipynb", output / "run.json"}
    assert done.stdout.startswith(
        f"odd {{y}} what?: {record['seconds']:.0f} s. The executed notebook is {output.name}/odd {{y}}"
    )
    assert {line.split(":")[0] for line in done.stderr.splitlines()} == {"", "Executing"}  # the bar, and no warning
    assert (record["notebook"], record["status"], record["error"], record["backend"]) == ("odd {y} what?", "ok", None, "jax")
    assert record["revision"] is None
    assert record["versions"]["keras"] == keras.__version__
    assert record["seconds"] > 0
    assert record["sources"] == provenance.sources_of(notebooks.read(output.parent / "odd {y} what?.ipynb"))


@RUNNABLE
def test_a_default_that_nobody_changed_is_the_notebooks_own(executed):
    output, _ = executed
    node = nbformat.read(output / "odd {y} what?.ipynb", as_version=4)
    given, its = eval(node.cells[-1].outputs[0].text, {"np": np, "inf": math.inf})
    high = WORD
    assert given == (
        -4,
        -1e-3,
        "### Task: {x}",
        3 * 1e-4,
        "two\nlines",
        "a=bc",
        np.float32(0.5),
        -math.inf,
        high,
        output.name,
    )
    assert type(given[6]) is np.float32
    assert its == (sys.executable, "jax", "ipc")  # sockets that are files: no two kernels draw the same port
    injected = [cell.source for cell in node.cells if "injected-parameters" in cell.metadata.tags]
    assert [list(notebooks.parameters_in(code)) for code in injected] == [["steps", "rate", "high", "low", "output"]]


@RUNNABLE
def test_what_is_recorded_is_what_the_kernel_had(executed):
    """After its cell of parameters; `steps` becomes 99 later. What JSON has not is there by its `repr`."""
    output, _ = executed
    record = json.loads((output / "run.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    json.loads((output / "odd {y} what?.ipynb").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert record["parameters"] == {
        "steps": -4,
        "rate": -1e-3,
        "template": "### Task: {x}",
        "lr": 3 * 1e-4,
        "text": "two\nlines",
        "equal": "a=bc",
        "wide": "np.float32(0.5)",
        "low": "-inf",
        "high": WORD,
        "output": output.name,
    }


@RUNNABLE
def test_a_failing_cell_is_one_line_and_the_notebook_is_kept(run, write_notebook, tmp_path):
    path = write_notebook("broken", "steps = 3", "print('so far')", "raise ValueError('no\\nluck')", "print('never')")
    status, printed, message = run(path, "--output", "out")
    assert (status, printed) == (1, "")
    assert message == "keras-bond: broken, cell [3]: ValueError: no luck (see out/broken.ipynb)"
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["status"], record["error"]) == ("failed", "broken, cell [3]: ValueError: no luck")
    assert record["parameters"] == {"steps": 3}
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


@RUNNABLE
def test_an_interrupted_run_ends_its_kernel_and_leaves_no_record(write_notebook, tmp_path, interruptible):
    code = "import os, time\nopen('pid.tmp', 'w').write(str(os.getpid()))\nos.rename('pid.tmp', 'pid')\ntime.sleep(60)"
    write_notebook("small", "x = 1", code)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json").write_text("of an earlier run")
    command = [sys.executable, "-m", "keras_bond.cli", "run", "small.ipynb", "--output", "out"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible)
    while not (tmp_path / "pid").exists():
        assert process.poll() is None
        time.sleep(0.05)
    kernel = psutil.Process(int((tmp_path / "pid").read_text()))
    files = pathlib.Path(next(word for word in kernel.cmdline() if word.endswith("kernel.json"))).parent
    process.send_signal(signal.SIGINT)
    *bar, message = process.communicate(timeout=120)[1].splitlines()
    assert (process.returncode, message) == (1, "keras-bond: interrupted")
    assert {line.split(":")[0] for line in bar} == {"", "Executing"}  # nor does the kernel complain
    assert psutil.wait_procs([kernel], timeout=20)[1] == []
    assert not files.exists()
    assert not (tmp_path / "out" / "run.json").exists()


def test_a_notebook_that_was_edited_since_its_sweep_began_is_not_run(write_notebook, tmp_path):
    path = write_notebook("small", "x = 1")
    with pytest.raises(RuntimeError, match=r"^small: RuntimeError: it was edited, or keras_bond was, since the sweep began"):
        runner.run(path, tmp_path / "out", sources={"notebook": "another"})
    assert provenance.record_of(tmp_path / "out")["status"] == "failed"
    assert not (tmp_path / "out" / "small.ipynb").exists()


def test_an_unknown_parameter_lists_the_notebooks_own(run, write_notebook, tmp_path):
    path = write_notebook("small", PARAMETERS)
    message = "argument -p: expected a parameter of small (steps, rate, name, output), received 'stepps'"
    assert run(path, "-p", "stepps", "1", "--output", "out") == (2, "", f"keras-bond: {message}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [(1, 2), {1: 2}, np.int64(3), "\ud800", pathlib.Path("x")])
def test_a_value_that_no_notebook_can_be_given_is_refused(write_notebook, tmp_path, value):
    path = write_notebook("small", "x = 1")
    with pytest.raises(
        ValueError, match=r"^argument -p: expected numbers, text, True, False, None, or lists or dicts of them"
    ):
        runner.run(path, tmp_path / "out", {"x": value})
    assert not (tmp_path / "out").exists()


def test_a_folder_that_no_file_can_name_is_refused(write_notebook, tmp_path):
    path = write_notebook("small", "x = 1\noutput = ''")
    with pytest.raises(ValueError, match=r"^argument --output: expected a name that UTF-8 has, received '.*ud800'$"):
        runner.run(path, tmp_path / "\ud800")


def test_a_parameter_that_is_set_twice_is_refused(run, write_notebook):
    message = "argument -p: expected each parameter once, received 'steps' twice"
    path = write_notebook("small", PARAMETERS)
    assert run(path, "-p", "steps", "1", "-p", "steps", "2", "--output", "out") == (2, "", f"keras-bond: {message}")


def test_a_notebook_without_parameters_says_so(run, write_notebook):
    message = "keras-bond: argument -p: expected a parameter of bare (it has none), received 'steps'"
    assert run(write_notebook("bare", "print(1)"), "-p", "steps", "1", "--output", "out") == (2, "", message)


def test_a_notebook_that_is_not_there(run, write_notebook, tmp_path):
    expected = "argument NOTEBOOK: expected an .ipynb file or a notebook in ./notebooks"
    assert run("03_tea", "--output", "out")[2] == f"keras-bond: {expected} (here there is none), received '03_tea'"
    (tmp_path / "notebooks").mkdir()
    write_notebook("01_first", "x = 1").rename(tmp_path / "notebooks" / "01_first.ipynb")
    assert run("03_tea", "--output", "out") == (2, "", f"keras-bond: {expected} (01_first), received '03_tea'")
    assert notebooks.find("01_first") == notebooks.find("01_first.ipynb") == pathlib.Path("notebooks/01_first.ipynb")


def test_what_a_notebook_cannot_be_is_one_line(run, write_notebook, tmp_path):
    (tmp_path / "x.ipynb").write_text("no")
    status, _, message = run("x.ipynb", "--output", "out")
    assert status == 2
    assert message.startswith("keras-bond: argument NOTEBOOK: 'x.ipynb' is not a notebook: ")
    expected = "expected a notebook in Python, received 'in_r.ipynb', which is in R"
    write_notebook("in_r", "x <- 1")
    path = tmp_path / "in_r.ipynb"
    path.write_text(path.read_text().replace('"language": "python"', '"language": "R"'))
    assert run("in_r.ipynb", "--output", "out") == (2, "", f"keras-bond: argument NOTEBOOK: {expected}")
    assert not (tmp_path / "out").exists()


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


def test_the_revision_is_that_of_the_notebook(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    assert re.fullmatch("[0-9a-f]{40}", provenance.revision(tmp_path))
    (tmp_path / "x").write_text("1")
    subprocess.run([*git, "add", "x"], cwd=tmp_path, check=True)
    assert re.fullmatch("[0-9a-f]{40}-dirty", provenance.revision(tmp_path))
    monkeypatch.setenv("PATH", "")
    assert provenance.revision(tmp_path) is None


def test_papermill_is_not_loaded_by_other_commands():
    code = "import sys; from keras_bond import cli; cli._parser(); print('papermill' in sys.modules, 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False False\n"
