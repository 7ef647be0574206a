"""What is read from a notebook before it runs."""

import json

import nbformat
import pytest

from keras_bond.experiments import notebook as notebooks
from keras_bond.experiments.notebook import Source, parameters_in

pytestmark = pytest.mark.any_backend


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ('template = "### Task: {x}"', {"template": "### Task: {x}"}),
        ("lr = 3 * 1e-4", {"lr": Source("3 * 1e-4")}),
        ('s = """two\nlines"""', {"s": "two\nlines"}),
        ('s = ("one "  # a = b\n     "two")', {"s": "one two"}),
        ('s = "a=b"\nt = 1  # u = 2', {"s": "a=b", "t": 1}),
        ("# x = 1\n", {}),
        ("import numpy as np\nx: np.float32 = 1", {"x": 1}),
        ("x: list[int] = [1]\ny: int", {"x": [1], "y": Source("")}),
        ("a, b = 1, 'q'", {"a": 1, "b": "q"}),
        ("(a, [b, c]) = 1, (2, None)", {"a": 1, "b": 2, "c": None}),
        ("a = b = -1e-3", {"a": -1e-3, "b": -1e-3}),
        ("a, b = pair\nc, *d = 1, 2", {"a": Source("pair"), "b": Source("pair"), "c": Source("1, 2"), "d": Source("1, 2")}),
        ("x = 1\nx += 1", {"x": Source("x += 1")}),
        ("if fast:\n    x = 1\nelse:\n    x = 2", {"x": Source("2")}),
        ("try:\n    x = 1\nexcept ImportError:\n    x = 2\nfinally:\n    y = 3", {"x": Source("2"), "y": Source("3")}),
        ("x = {\n    'a': [1, 2],  # b = 3\n}", {"x": {"a": [1, 2]}}),
        ("x = (1, 2)\ny = {1, 2}\nz = {1: 2}", {"x": Source("(1, 2)"), "y": Source("{1, 2}"), "z": Source("{1: 2}")}),
        ("x = 'a'; y = not True", {"x": "a", "y": Source("not True")}),
        ("%matplotlib inline\n!ls\nx = 1\nx?", {"x": 1}),
        ("%%time\nx = 1", {"x": 1}),
        ("def f(a=1):\n    b = 2\nx.y = 1\nx[0] = 2\nfor i in ():\n    pass", {}),
        ("", {}),
    ],
)
def test_parameters(code, expected):
    found = parameters_in(code)
    assert found == expected
    assert {name: type(value) for name, value in found.items()} == {name: type(value) for name, value in expected.items()}
    assert list(found) == list(expected)


@pytest.fixture
def edit(write_notebook):
    """`edit(change)` -> the `Notebook` whose node was changed in place."""

    def read(change=lambda node: None):
        path = write_notebook("small", "x = 1", "print(x)")
        node = nbformat.read(path, as_version=4)
        change(node)
        nbformat.write(node, path)
        return notebooks.read(path)

    return read


def test_the_digest_is_of_the_code(edit):
    def dress(node):
        node.cells[1].outputs = [nbformat.v4.new_output("stream", text="1\n")]
        node.cells[1].execution_count = 3
        node.metadata.kernelspec.display_name = "Other"
        node.cells.append(nbformat.v4.new_markdown_cell("# More"))

    def change(node):
        node.cells[1].source = "print(x )"

    digest = edit().digest
    assert edit(dress).digest == digest
    assert edit(change).digest != digest
    assert edit(lambda node: node.cells.reverse()).digest != digest


@pytest.mark.parametrize("kernel", [None, {}, {"name": "conda-env-other-py", "display_name": "Python [conda env:other]"}])
@pytest.mark.parametrize("language", [None, {"name": "python", "version": "2.7"}])
def test_a_notebook_may_name_any_kernel_or_none(edit, kernel, language):
    def change(node):
        node.metadata = {"kernelspec": kernel, "language_info": language}
        node.metadata = {key: its for key, its in node.metadata.items() if its is not None}

    assert edit(change).parameters == {"x": 1}


@pytest.mark.parametrize(
    "metadata",
    [{"language_info": {"name": "R"}}, {"kernelspec": {"name": "ir", "display_name": "R", "language": "R"}}],
)
def test_another_language_is_refused(edit, metadata, tmp_path):
    with pytest.raises(ValueError, match=r"^argument NOTEBOOK: expected a notebook in Python, received .*, which is in R$"):
        edit(lambda node: node.update(metadata=metadata))


def test_all_cells_with_the_tag_count_and_a_notebook_needs_none(edit):
    def tag_both(node):
        node.cells[1].metadata.tags = ["hide", "injected-parameters"]
        node.cells[1].source = "x = 3; y = 2"

    assert edit(tag_both).parameters == {"x": 3, "y": 2}
    assert edit(lambda node: node.cells[0].metadata.clear()).parameters == {}


def test_parameters_that_do_not_parse_are_one_line(write_notebook, tmp_path):
    path = write_notebook("small", "x = 1\ny = = 2")
    with pytest.raises(ValueError, match=r"tagged `parameters`, received 'y = = 2' in line 2: invalid syntax$"):
        notebooks.read(path)


def test_a_notebook_of_old_is_read(tmp_path):
    cell = {"cell_type": "code", "input": "x = 1", "language": "python", "metadata": {"tags": ["parameters"]}, "outputs": []}
    node = {"metadata": {"name": ""}, "nbformat": 3, "nbformat_minor": 0, "worksheets": [{"cells": [cell]}]}
    (tmp_path / "x.ipynb").write_text(json.dumps(node))
    found = notebooks.read(tmp_path / "x.ipynb")
    assert (found.parameters, type(found.node)) == ({"x": 1}, nbformat.NotebookNode)


def test_a_file_of_windows_is_read(write_notebook):
    path = write_notebook("small", "x = 1")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert notebooks.read(path).parameters == {"x": 1}


@pytest.mark.parametrize("text", ["no", "{}", json.dumps({"cells": 3, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})])
def test_a_file_that_is_no_notebook(tmp_path, text):
    path = tmp_path / "x.ipynb"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"^argument NOTEBOOK: '.*x.ipynb' is not a notebook: "):
        notebooks.read(path)
