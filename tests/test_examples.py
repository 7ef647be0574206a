"""The examples in the docstrings of the package give what they say."""

import doctest
import importlib
import pathlib

import pytest

pytestmark = pytest.mark.any_backend

PACKAGE = pathlib.Path(__file__).parents[1] / "keras_bond"
WITH_EXAMPLES = sorted(path for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_examples_of(path):
    name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted
    assert not found.failed
