"""Imports inside the package go one way, from the mathematics up to the command line; the source is read, not run."""

import ast
import pathlib

import pytest

pytestmark = pytest.mark.any_backend

PACKAGE = pathlib.Path(__file__).parents[1] / "keras_bond"

LEVELS = {
    "_checks": -1,
    "data": 0,
    "families": 0,
    "ops": 0,
    "optimizers": 0,
    "presets": 0,
    "schedules": 0,
    "anchors": 1,
    "quantiles": 1,
    "rewards": 1,
    "rollout": 1,
    "sampling": 2,
    "trainers": 2,
    "callbacks": 4,
    "checkpoints": 3,
    "evaluation": 3,
    "export": 3,
    "scale": 3,
    "tabular": 3,
    "experiments": 5,
    "cli": 6,
    "__init__": 6,  # the package itself: whoever imports a name from it imports the top
}
FREE = {"cli", "__init__"}  # these may import anything of the house
ONLY_IN_EXPERIMENTS = {"joblib", "matplotlib", "pandas", "papermill"}


def imports(source, module):
    """Every module that `source` imports anywhere in it, as (line, dotted name); `module` is its own dotted name.

    `from keras_bond import x` counts as `keras_bond.x`. A module named `__init__` is the package it stands in.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*module.split(".")[: -node.level]] if node.level else []
            base += [node.module] if node.module else []
            yield from ((node.lineno, ".".join([*base, alias.name])) for alias in node.names)


def room(name):
    """The room of a dotted name inside the package: `keras_bond.ops.quantiles` lives in `ops`, a public name at the top."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LEVELS else "__init__"


def violations(source, module):
    """One line for each import in `source` that the house forbids; empty where all is well."""
    here = module.split(".")[1]
    if here not in LEVELS:
        return [f"{module} lives in a room without a level: name `{here}` in LEVELS"]
    found = []
    for line, name in imports(source, module):
        top = name.split(".")[0]
        if top in ONLY_IN_EXPERIMENTS and here != "experiments":
            found.append(f"{module}:{line} imports {top}, which belongs to experiments alone")
        if top == "keras_bond" and here not in FREE:
            there = room(name)
            if there != here and LEVELS[there] >= LEVELS[here]:
                found.append(f"{module}:{line} imports {name}: {here} may import only what lies below it")
    return found


def modules():
    return {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}


def test_every_module_imports_only_downwards():
    found = [line for name, path in modules().items() for line in violations(path.read_text(encoding="utf-8"), name)]
    assert not found, "\n".join(found)


def test_the_modules_are_found():
    assert {"keras_bond.__init__", "keras_bond.ops.quantiles", "keras_bond.trainers.backend.jax"} <= set(modules())


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("keras_bond.ops.quantiles", "from keras_bond.trainers import JBOND"),
        ("keras_bond.ops.quantiles", "def f():\n    import keras_bond.experiments.demo as demo"),
        ("keras_bond.ops.quantiles", "from keras_bond import evaluation"),
        ("keras_bond.ops.quantiles", "from keras_bond import JBOND"),
        ("keras_bond.ops.quantiles", "import keras_bond"),
        ("keras_bond.ops.quantiles", "from ..trainers.jbond import JBOND"),
        ("keras_bond.ops.__init__", "from ..anchors import EMAAnchor"),
        ("keras_bond.ops.quantiles", "from .. import rewards"),
        ("keras_bond.ops.quantiles", "from keras_bond import presets"),
        ("keras_bond.presets.__init__", "from keras_bond.ops import win_rate"),
        ("keras_bond.rewards.reward", "from keras_bond.rollout import Rollout"),
        ("keras_bond.trainers.jbond", "if TYPE_CHECKING:\n    from keras_bond.evaluation import Evaluation"),
        ("keras_bond.evaluation.evaluate", "from keras_bond.callbacks import EvaluateEvery"),
        ("keras_bond.scale.report", "from keras_bond.cli import main"),
        ("keras_bond.evaluation.evaluate", "import pandas as pd"),
        ("keras_bond.callbacks.samples", "from matplotlib.figure import Figure"),
        ("keras_bond.cli", "def run():\n    import papermill"),
        ("keras_bond.attic.old", ""),
    ],
)
def test_an_upward_import_is_found(module, source):
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("keras_bond.trainers.jbond", "from keras_bond.ops import win_rate\nfrom keras_bond.anchors import EMAAnchor"),
        ("keras_bond.trainers.jbond", "from keras_bond.trainers.trainer import AlignmentTrainer"),
        ("keras_bond.trainers.jbond", "from .trainer import AlignmentTrainer\nfrom ..ops import win_rate"),
        ("keras_bond.trainers.__init__", "from .jbond import JBOND"),
        ("keras_bond.evaluation.evaluate", "from keras_bond import ops\nimport numpy as np"),
        ("keras_bond.experiments.plots", "import pandas\nfrom keras_bond.evaluation import Evaluation"),
        ("keras_bond.cli", "from keras_bond.experiments import demo\nimport keras_bond"),
        ("keras_bond.__init__", "from keras_bond import cli, trainers"),
        ("keras_bond.rollout.prompts", "import pandas_like\ntype(x).__module__.startswith('pandas')"),
    ],
)
def test_a_downward_import_is_allowed(module, source):
    assert violations(source, module) == []
