"""Notebooks of a few lines."""

import nbformat
import pytest


@pytest.fixture
def write_notebook(tmp_path):
    """`write_notebook(name, *cells)` -> path; the first cell is tagged `parameters`."""

    def write(name, *cells):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
        notebook.cells[0].metadata["tags"] = ["parameters"]
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        path = tmp_path / f"{name}.ipynb"
        nbformat.write(notebook, path)
        return path

    return write
