"""A notebook before it runs: its parameters, as Python's own parser reads them, and the digest of its code."""

import ast
import pathlib
from typing import NamedTuple

import nbformat
from IPython.core.inputtransformer2 import TransformerManager

from keras_bond.experiments.provenance import digest
from keras_bond.experiments.values import is_json

NOTEBOOKS = pathlib.Path("notebooks")


class Source(str):
    """A default that is no literal: the text of its expression."""

    __slots__ = ()


class Notebook(NamedTuple):
    """A notebook in Python."""

    path: pathlib.Path
    node: nbformat.NotebookNode
    parameters: dict
    """Name -> default: a value that JSON has, or `Source`; those of `is_of_parameters`."""

    @property
    def digest(self):
        """Of the code cells; outputs, metadata and text do not count."""
        return digest(cell.source for cell in self.node.cells if cell.cell_type == "code")


def find(name):
    """The path of a notebook, given as a file or by the name of one in ./notebooks.

    Raises:
        ValueError: if there is none; the message lists those there are.
    """
    for path in (pathlib.Path(name), NOTEBOOKS / f"{str(name).removesuffix('.ipynb')}.ipynb"):
        if path.is_file() and path.suffix == ".ipynb":
            return path
    known = ", ".join(sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))) or "here there is none"
    raise ValueError(
        f"argument NOTEBOOK: expected an .ipynb file or a notebook in ./notebooks ({known}), received {str(name)!r}"
    )


def read(name):
    """The `Notebook` that `find` finds.

    Raises:
        ValueError: if there is none, the file is no notebook, its language is not Python, or its cell of parameters does
            not parse.
    """
    path = find(name)
    try:
        node = nbformat.from_dict(nbformat.reads(path.read_text(encoding="utf-8-sig"), as_version=4))
        code = "\n".join(cell.source for cell in node.cells if is_of_parameters(cell))
    except Exception as error:  # whatever JSON and nbformat say to a file that is something else
        raise ValueError(f"argument NOTEBOOK: {str(path)!r} is not a notebook: {' '.join(str(error).split())}") from error
    spec = node.metadata.get("kernelspec") or {}
    language = (node.metadata.get("language_info") or {}).get("name") or spec.get("language") or "python"
    if "python" not in language.lower():
        raise ValueError(f"argument NOTEBOOK: expected a notebook in Python, received {str(path)!r}, which is in {language}")
    try:
        return Notebook(path, node, parameters_in(code))
    except SyntaxError as error:
        raise ValueError(
            f"argument NOTEBOOK: expected Python in the cell of {str(path)!r} that is tagged `parameters`, received "
            f"{(error.text or '').strip()!r} in line {error.lineno}: {error.msg}"
        ) from error


def is_of_parameters(cell):
    """Whether a cell is tagged `parameters`, or has what another run set; what is set comes after the last of them."""
    return cell.cell_type == "code" and not {"parameters", "injected-parameters"}.isdisjoint(cell.metadata.get("tags", []))


def parameters_in(code):
    """The names that the code of a cell assigns to, and what it assigns.

    >>> parameters_in('lr = 3 * 1e-4\\nname: str = "a=b"  # c = d\\nlow, high = 1, None')
    {'lr': '3 * 1e-4', 'name': 'a=b', 'low': 1, 'high': None}

    Args:
        code: of a cell, magics included.

    Returns:
        Dict, name -> the value of a literal, or else its `Source`.

    Raises:
        SyntaxError: if it is no Python.
    """
    code = code.split("\n", 1)[-1] if code.startswith("%%") else code  # what a cell magic runs
    code = TransformerManager().transform_cell(code)
    return {name: _default(value, literal, code) for name, value, literal in _assigned(ast.parse(code).body)}


def _assigned(statements, literal=True):
    """(name, node of its value, whether that may be a literal); a value that an `if` or the like decides is none."""
    for statement in statements:
        match statement:
            case ast.Assign(targets, value):
                for target in targets:
                    yield from _unpacked(target, value, literal)
            case ast.AnnAssign(ast.Name(name), value=value):
                yield name, value, literal
            case ast.AugAssign(ast.Name(name)):
                yield name, statement, False
            case ast.If() | ast.For() | ast.While() | ast.With() | ast.Try() | ast.ExceptHandler():
                for part in ("body", "handlers", "orelse", "finalbody"):
                    yield from _assigned(getattr(statement, part, ()), literal=False)


def _unpacked(target, value, literal):
    match target, value:
        case ast.Name(name), _:
            yield name, value, literal
        case ast.Starred(inner), _:
            yield from _unpacked(inner, value, False)
        case ((ast.Tuple(targets) | ast.List(targets)), _):
            values = getattr(value, "elts", ())
            one_to_one = len(values) == len(targets) and not any(isinstance(t, ast.Starred) for t in targets)
            for i, each in enumerate(targets):
                yield from _unpacked(each, values[i] if one_to_one else value, literal and one_to_one)


def _default(value, literal, code):
    if value is None:  # `x: int` alone
        return Source()
    try:
        default = ast.literal_eval(value) if literal else ()
    except (ValueError, TypeError):
        default = ()
    return default if is_json(default) else Source(ast.get_source_segment(code, value))
