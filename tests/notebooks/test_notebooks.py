"""Every notebook runs top to bottom in the smoke profile, and is kept as people should find it."""

import json
import pathlib

import keras
import pytest

from keras_bond import cli
from keras_bond.experiments.results import FILES, PARAMETERS

pytestmark = pytest.mark.any_backend

NOTEBOOKS = sorted(pathlib.Path(__file__).parents[2].glob("notebooks/*.ipynb"))
RUNNABLE = pytest.mark.skipif(keras.config.backend() != "jax", reason="the notebooks are run on one backend")

NEEDED = {*PARAMETERS}
ids = [path.stem for path in NOTEBOOKS]


def test_there_are_notebooks():
    assert [name[:2] for name in ids] == [f"{i:02}" for i in range(1, 11)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_it_is_kept_without_outputs_and_with_parameters(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3")
    cells = notebook["cells"]
    assert "".join(cells[0]["source"]).startswith("# ")
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["metadata"].get("tags", []) for cell in code] == [["parameters"], *[[]] * (len(code) - 1)]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert max(len(cell["source"]) for cell in code[1:]) <= 16
    assert len(code[0]["source"]) <= 24
    names = [line.split(" = ")[0] for line in code[0]["source"]]
    assert all(name.isidentifier() for name in names)  # one a line: papermill sees no others


@pytest.fixture
def strict(tmp_path, monkeypatch):
    """A kernel in which a warning that names a module of keras_bond as its place is an error."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import warnings\nwarnings.filterwarnings('error', module='keras_bond')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=":")


@RUNNABLE
@pytest.mark.parametrize("path", NOTEBOOKS, ids=ids)
def test_it_runs(path, strict, tmp_path):
    cli.main(["run", str(path), "-p", "profile", "smoke", "--output", str(tmp_path)])
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["status"], record["error"], record["parameters"]["profile"]) == ("ok", None, "smoke")
    if NEEDED <= record["parameters"].keys():  # a sweep can run it
        assert all((tmp_path / name).is_file() for name in FILES)
    outputs = [o for c in json.loads((tmp_path / path.name).read_text())["cells"] for o in c.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)


@RUNNABLE
def test_a_warning_of_ours_would_fail(strict, tmp_path, write_notebook):
    path = write_notebook(
        "warns", "import warnings\nwarnings.warn_explicit('careful', UserWarning, 'f.py', 1, 'keras_bond.ops')"
    )
    with pytest.raises(SystemExit, match="UserWarning: careful"):
        cli.main(["run", str(path), "--output", str(tmp_path / "run")])
