"""The sweeps that come with the notebooks are ones that `sweep` takes, and `report` can judge."""

import pathlib

import pytest

from keras_bond.evaluation import UNITS
from keras_bond.experiments import spec

pytestmark = pytest.mark.any_backend

ROOT = pathlib.Path(__file__).parents[2]
SPECS = sorted(ROOT.glob("notebooks/sweeps/*.yaml"))
FIGURES = {f"{i:02}" for i in range(3, 9)}


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_every_experiment_has_one():
    experiments = {path.stem for path in ROOT.glob("notebooks/*.ipynb") if path.stem[:2] in FIGURES}
    assert {name[:2] for name in experiments} == FIGURES
    assert experiments <= {path.stem for path in SPECS}


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_it_can_be_run_and_judged(path):
    plan = spec.read(path)  # which checks that parameters are the notebook's, and that findings compare settings of the grid
    assert plan.name == path.stem
    assert {cell["seed"] for cell in plan.cells.values()} == {0, 1, 2}
    assert {cell["profile"] for cell in plan.cells.values()} == {"full"}
    if path.stem[:2] in FIGURES:
        assert plan.findings
        assert plan.notebook.stem == path.stem


@pytest.mark.parametrize("path", [path for path in SPECS if path.stem[:2] in FIGURES], ids=lambda path: path.stem)
def test_its_findings_are_of_figures_that_there_will_be(path):
    plan = spec.read(path)
    cell = next(iter(plan.cells.values()))
    every = -(-cell["steps"] // cell["evaluations"])  # as in `align`
    evaluated = {"final", cell["steps"], *range(0, cell["steps"], every)}
    for finding in plan.findings:
        assert finding["metric"] in UNITS
        assert {finding.get("at", "final"), finding.get("since", 0)} <= evaluated
