"""`keras-bond run`: one parameterised notebook through papermill, with a record of the run."""

import pathlib
import time

from papermill.exceptions import PapermillExecutionError

from keras_bond.experiments import notebook as notebooks
from keras_bond.experiments.kernel import execute
from keras_bond.experiments.provenance import record, sources_of
from keras_bond.experiments.values import is_json


def run(notebook, output, parameters=None, say=print, started=None, required=(), progress=True, sources=None):
    """Execute a notebook; write it with its outputs, `NAME.ipynb`, and `run.json` to `output`.

    The kernel is one of this Python, and works in the present folder. A notebook that writes files has a parameter `output`,
    which is this folder. All other parameters that are not set are as the notebook says.

    Args:
        notebook: a file, or the name of one in ./notebooks: `01_quickstart`.
        output: folder.
        parameters: dict, values for the notebook's parameters: None, bools, numbers, text, lists, dicts.
        say: what prints where the results are.
        started: `time.time()` from which `seconds` counts; now by default.
        required: files that the notebook is to leave in `output`; the run has failed where one is missing.
        progress: whether papermill shows its bar.
        sources: what `sources_of` has to be; anything by default.

    Returns:
        What is in `run.json`, see `record`.

    Raises:
        ValueError: if there is no such notebook, or it has no such parameter, or a parameter no such value.
        RuntimeError: if a cell fails; the notebook so far and `run.json` are written all the same.
    """
    started = started or time.time()
    source, output, parameters = notebooks.read(notebook), pathlib.Path(output), dict(parameters or {})
    name, target = source.path.stem, output / source.path.name
    if not is_json(str(output)):
        raise ValueError(f"argument --output: expected a name that UTF-8 has, received {str(output)!r}")
    if target.resolve() == source.path.resolve():
        raise ValueError(f"argument --output: expected another folder than the notebook's own, received {str(output)!r}")
    for key, its in parameters.items():
        if key not in source.parameters:
            known = ", ".join(source.parameters) or "it has none"
            raise ValueError(f"argument -p: expected a parameter of {name} ({known}), received {key!r}")
        if not is_json(its):
            expected = "numbers, text, True, False, None, or lists or dicts of them"
            raise ValueError(f"argument -p: expected {expected} as `{key}`, received {its!r}, a {type(its).__name__}")
    if "output" in source.parameters:
        parameters.setdefault("output", str(output))
    output.mkdir(parents=True, exist_ok=True)
    for file in ("run.json", "device.txt"):  # a run that is killed leaves none
        (output / file).unlink(missing_ok=True)
    made_by, error = sources_of(source), None
    values: dict = {}
    try:
        if sources not in (None, made_by):
            raise RuntimeError("it was edited, or keras_bond was, since the sweep began: run the same command again")
        execute(source, target, parameters, values, progress)
    except PapermillExecutionError as failure:
        error = f"{name}, cell [{failure.exec_count}]: {failure.ename}: {' '.join(failure.evalue.split())}"
    except Exception as failure:  # a kernel that is not there, or that died
        error = f"{name}: {type(failure).__name__}: {' '.join(str(failure).split())}"
    missing = [file for file in required if not (output / file).is_file()]
    if missing and not error:
        error = f"{name}: wrote no {', no '.join(missing)}, which a sweep needs: see experiments.results"
    had = {**parameters, **values}
    had = {key: had[key] for key in source.parameters if key in had}
    result = record(source.path, had, error, started, output, made_by)
    if error:
        raise RuntimeError(f"{error} (see {target})")
    say(f"{name}: {result['seconds']:.0f} s. The executed notebook is {target}, its record {output / 'run.json'}.")
    return result
