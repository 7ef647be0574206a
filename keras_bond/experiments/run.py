"""`keras-bond run`: one parameterised notebook through papermill, with a record of the run."""

import ast
import datetime
import json
import os
import pathlib
import time

import papermill
from papermill.exceptions import PapermillExecutionError

from keras_bond.experiments.provenance import host, revision, versions, write_whole

NOTEBOOKS = pathlib.Path("notebooks")
_CONSTANTS = {"True": True, "False": False, "None": None}  # as Python writes them; JSON's own are true, false and null


def run(notebook, output, parameters=None, say=print, started=None, required=(), progress=True):
    """Execute a notebook; write it with its outputs, `NAME.ipynb`, and `run.json` to `output`.

    The kernel works in the present folder. A notebook that writes files has a parameter `output`, which is this folder.

    Args:
        notebook: a file, or the name of one in ./notebooks: `01_quickstart`.
        output: folder.
        parameters: dict, values for the notebook's parameters.
        say: what prints where the results are.
        started: `time.time()` from which `seconds` counts; now by default.
        required: files that the notebook is to leave in `output`; the run has failed where one is missing.
        progress: whether papermill shows its bar.

    Returns:
        What is in `run.json`, see `record`.

    Raises:
        ValueError: if there is no such notebook, or it has no such parameter.
        RuntimeError: if a cell fails; the notebook so far and `run.json` are written all the same.
    """
    started = started or time.time()
    source, output, parameters = find(notebook), pathlib.Path(output), dict(parameters or {})
    target = output / source.name
    if target.resolve() == source.resolve():
        raise ValueError(f"argument --output: expected another folder than the notebook's own, received {str(output)!r}")
    defaults = parameters_of(source)
    for name in parameters:
        if name not in defaults:
            known = ", ".join(defaults) or "it has none"
            raise ValueError(f"argument -p: expected a parameter of {source.stem} ({known}), received {name!r}")
    if "output" in defaults:
        parameters.setdefault("output", str(output))
    output.mkdir(parents=True, exist_ok=True)
    for name in ("run.json", "device.txt"):  # a run that is killed leaves none
        (output / name).unlink(missing_ok=True)
    error = None
    try:
        papermill.execute_notebook(source, target, parameters, progress_bar=progress)
    except PapermillExecutionError as failure:
        error = f"{source.stem}, cell [{failure.exec_count}]: {failure.ename}: {' '.join(failure.evalue.split())}"
    except Exception as failure:  # a kernel that is not there, or that died
        error = f"{source.stem}: {type(failure).__name__}: {' '.join(str(failure).split())}"
    missing = [name for name in required if not (output / name).is_file()]
    if missing and not error:
        error = f"{source.stem}: wrote no {', no '.join(missing)}, which a sweep needs: see experiments.results"
    result = record(source, {**defaults, **parameters}, error, started, output)
    if error:
        raise RuntimeError(f"{error} (see {target})")
    say(f"{source.stem}: {result['seconds']:.0f} s. The executed notebook is {target}, its record {output / 'run.json'}.")
    return result


def record(source, parameters, error, started, output):
    """Write `run.json` to `output`; returns what is in it.

    Its keys: `notebook`, `parameters` (all of them), `status` ("ok" or "failed"), `error` (a line, or None), `seconds`,
    `date`, `backend`, `device` (as the notebook wrote it to `device.txt`, or else the machine), `revision` (of its git
    repository, or None), `versions`.
    """
    device = output / "device.txt"
    result = {
        "notebook": source.stem,
        "parameters": parameters,
        "status": "failed" if error else "ok",
        "error": error,
        "seconds": round(time.time() - started, 1),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "backend": os.environ.get("KERAS_BACKEND", "jax"),
        "device": device.read_text(encoding="utf-8").strip() if device.is_file() else host(),
        "revision": revision(source.parent),
        "versions": versions(),
    }
    write_whole(output / "run.json", json.dumps(result, indent=2) + "\n")
    return result


def find(notebook):
    """The path of a notebook, given as a file or by the name of one in ./notebooks.

    Raises:
        ValueError: if there is none; the message lists those there are.
    """
    for path in (pathlib.Path(notebook), NOTEBOOKS / f"{str(notebook).removesuffix('.ipynb')}.ipynb"):
        if path.is_file() and path.suffix == ".ipynb":
            return path
    known = ", ".join(sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))) or "here there is none"
    raise ValueError(
        f"argument NOTEBOOK: expected an .ipynb file or a notebook in ./notebooks ({known}), received {str(notebook)!r}"
    )


def parameters_of(path):
    """The parameters of a notebook with their defaults, a dict; an expression that is no literal stays text.

    Raises:
        ValueError: if the file is not a notebook.
    """
    try:
        known = papermill.inspect_notebook(path)
    except Exception as error:  # whatever JSON, nbformat and papermill say to a file that is something else
        raise ValueError(f"argument NOTEBOOK: {str(path)!r} is not a notebook: {' '.join(str(error).split())}") from error
    return {name: _literal(parameter["default"]) for name, parameter in known.items()}


def value(text):
    """A parameter as it is typed: JSON, or a number, True, False or None as Python writes them, or else a str.

    >>> [value(text) for text in ("smoke", "3e-4", "08", "true", "None", "[1, 2]", '"1"')]
    ['smoke', 0.0003, 8, True, None, [1, 2], '1']
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    for read in (json.loads, int, float):
        try:
            return read(text)
        except ValueError:
            pass
    return text


def _literal(source):
    try:
        return ast.literal_eval(source)
    except (ValueError, SyntaxError):
        return source
