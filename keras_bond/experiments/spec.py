"""What a sweep is: a YAML file, read and checked before anything runs.

name: ema                          # required; also the title of the report, if there is no `title`
title: EMA against hard updates
notebook: 01_quickstart            # required; a file, or the name of one in ./notebooks
parameters: {steps: 90, beta: 0.5} # the same in every cell; the notebook's own are the defaults
grid: {eta: [0.01, 0.05], n: [2, 4]}  # every combination; or a list of such grids: all of theirs
seeds: [0, 1, 2]                   # required; an interval needs two
findings:
  - figure: 6                      # of the paper
    says: A larger eta is faster.  # the finding in a sentence
    metric: reward                 # a column of evaluation.csv
    compare: [{eta: 0.05}, {eta: 0.01}]  # two settings of the grid: the first ...
    claim: higher                  # ... is `higher` or `lower` than the second, or `equal` within `margin`
    margin: 0.02                   # with `equal` alone
    at: 30                         # a step of evaluation.csv, or `final` (the default)
    since: 10                      # compare what was gained since this step, not the value itself
"""

import hashlib
import itertools
import json
import pathlib
import re
from typing import NamedTuple

import yaml

from keras_bond.experiments import run
from keras_bond.experiments.results import PARAMETERS

CLAIMS = ("higher", "lower", "equal")
_KEYS = {
    "name": True,
    "title": False,
    "notebook": True,
    "parameters": False,
    "grid": False,
    "seeds": True,
    "findings": False,
}
_FINDING = {"figure", "says", "metric", "compare", "claim", "margin", "at", "since"}
_REQUIRED = ("says", "metric", "compare", "claim")


class Spec(NamedTuple):
    """A sweep, every cell of it."""

    name: str
    title: str
    notebook: pathlib.Path
    keys: list
    """The parameters that vary, `seed` aside."""
    cells: dict
    """Name of the cell -> all parameters of the notebook, `output` aside."""
    findings: list
    text: str
    """The file."""


def read(path):
    """The `Spec` in a file.

    Raises:
        ValueError: one line that names the key, what was expected and received, and what to do.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"argument SPEC: expected a YAML file, received {str(path)!r}, which is not there")
    try:
        text = path.read_text(encoding="utf-8")
        loaded = yaml.load(text, _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"argument SPEC: {str(path)!r} is not YAML: {' '.join(str(error).split())}") from error
    try:
        return _checked(loaded, text)
    except _SpecError as error:
        raise ValueError(f"argument SPEC: {path.name}, {error}") from error


def cell_name(values):
    """A readable folder name that these values determine, and no others do.

    >>> cell_name({"eta": 0.02, "anchor": "ema", "seed": 1})
    'eta=0.02,anchor=ema,seed=1'
    >>> cell_name({"reward": "my module:f", "n": "4"})
    'reward=my-module-f-964e8b,n=4-2bf175'
    """
    name = ",".join(f"{key}={_word(value)}" for key, value in values.items())
    return name if len(name) <= 200 else f"{name[:190]}-{_digest(name)}"


def setting_of(parameters, keys):
    """The values of the grid in a cell, a dict."""
    return {key: parameters[key] for key in keys}


def matches(parameters, setting):
    """Whether a cell has these values."""
    return all(parameters[key] == value for key, value in setting.items())


class _SpecError(ValueError):
    pass


def _wrong(key, expected, received, remedy):
    return _SpecError(f"`{key}`: expected {expected}, received {received}; {remedy}")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's floats as well: 3e-4 is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _checked(loaded, text):
    if not isinstance(loaded, dict):
        raise _wrong("name", "a mapping with name, notebook and seeds", _kind(loaded), "write `name: ...` and so on")
    for key in loaded:
        if key not in _KEYS:
            raise _wrong(key, f"one of {', '.join(_KEYS)}", repr(key), "correct or remove it")
    for key, required in _KEYS.items():
        if required and loaded.get(key) is None:
            raise _wrong(key, "a value", "none", "add it")
    for key in ("name", "title", "notebook"):
        if not isinstance(loaded.get(key, ""), str) or not loaded.get(key, "x").strip():
            raise _wrong(key, "text", repr(loaded[key]), "write it in quotes if it is a number")
    notebook = _notebook(loaded["notebook"])
    defaults = run.parameters_of(notebook)
    for name in PARAMETERS:
        if name not in defaults:
            known = ", ".join(defaults) or "none"
            raise _wrong(
                "notebook",
                f"one with the parameters {', '.join(PARAMETERS)}",
                f"one with {known}",
                f"add `{name}` to its cell",
            )
    fixed, grids, seeds = loaded.get("parameters") or {}, loaded.get("grid") or {}, loaded["seeds"]
    grids = grids if isinstance(grids, list) else [grids]
    _check_parameters("parameters", fixed, defaults, notebook)
    for grid in grids:
        _check_parameters("grid", grid, defaults, notebook)
        for name, values in grid.items():
            if not isinstance(values, list) or not values or _repeated(values):
                raise _wrong(f"grid.{name}", "a list of different values", repr(values), f"write `{name}: [a, b]`")
    if (
        not isinstance(seeds, list)
        or not seeds
        or _repeated(seeds)
        or not all(type(s) is int and 0 <= s < 2**32 for s in seeds)
    ):
        raise _wrong("seeds", "a list of different integers of at least 0", repr(seeds), "write `seeds: [0, 1, 2]`")
    keys = list(dict.fromkeys(name for grid in grids for name in grid))
    cells = {}
    for grid in grids:
        for point in itertools.product(*grid.values()):
            parameters = {**defaults, **fixed, **dict(zip(grid, point, strict=True))}
            del parameters["output"]
            for seed in seeds:
                cells[cell_name({**setting_of(parameters, keys), "seed": seed})] = {**parameters, "seed": seed}
    findings = loaded.get("findings") or []
    if not isinstance(findings, list):
        raise _wrong("findings", "a list", _kind(findings), "begin each finding with `- `")
    for i, finding in enumerate(findings):
        _check_finding(f"findings[{i}]", finding, keys, cells)
    name = loaded["name"].strip()
    return Spec(name, loaded.get("title", name).strip(), notebook, keys, cells, findings, text)


def _notebook(name):
    try:
        return run.find(name)
    except ValueError as error:
        raise _SpecError(f"`notebook`: {str(error).removeprefix('argument NOTEBOOK: ')}; correct it") from error


def _check_parameters(key, values, defaults, notebook):
    if not isinstance(values, dict):
        raise _wrong(key, "a mapping from parameters to values", _kind(values), "write `NAME: VALUE` lines")
    for name, value in values.items():
        if name in ("seed", "output"):
            raise _wrong(f"{key}.{name}", "no such key", repr(value), "use `seeds`" if name == "seed" else "use --output")
        if name not in defaults:
            known = ", ".join(n for n in defaults if n not in ("seed", "output"))
            raise _wrong(f"{key}.{name}", f"a parameter of {notebook.stem} ({known})", repr(name), "correct the name")
        try:
            json.dumps(value)
        except TypeError:
            expected = "numbers, text, true, false, null or lists of them"
            raise _wrong(f"{key}.{name}", expected, repr(value), "write it in quotes") from None


def _check_finding(key, finding, keys, cells):
    if not isinstance(finding, dict):
        raise _wrong(key, "a mapping", _kind(finding), f"give it {', '.join(_REQUIRED)}")
    for name in finding:
        if name not in _FINDING:
            raise _wrong(f"{key}.{name}", f"one of {', '.join(sorted(_FINDING))}", repr(name), "correct or remove it")
    for name in _REQUIRED:
        if finding.get(name) is None:
            raise _wrong(f"{key}.{name}", "a value", "none", "add it")
    for name in ("says", "metric"):
        if not isinstance(finding[name], str):
            raise _wrong(f"{key}.{name}", "text", repr(finding[name]), "write it in quotes")
    claim, margin = finding["claim"], finding.get("margin")
    if claim not in CLAIMS:
        raise _wrong(f"{key}.claim", f"one of {', '.join(CLAIMS)}", repr(claim), "correct it")
    if claim == "equal" and not (isinstance(margin, int | float) and margin > 0):
        raise _wrong(f"{key}.margin", "a number above 0", repr(margin), "say which difference would still count as equal")
    if claim != "equal" and margin is not None:
        raise _wrong(f"{key}.margin", f"none with `claim: {claim}`", repr(margin), "remove it, or claim `equal`")
    for name in ("at", "since"):
        step = finding.get(name, "final")
        if not (step == "final" and (name == "at" or name not in finding)) and (type(step) is not int or step < 0):
            words = "an integer of at least 0" + (" or final" if name == "at" else "")
            raise _wrong(f"{key}.{name}", words, repr(step), "name a step of evaluation.csv")
    compare = finding["compare"]
    if not (isinstance(compare, list) and len(compare) == 2 and all(isinstance(s, dict) and s for s in compare)):
        raise _wrong(f"{key}.compare", "two settings of the grid", repr(compare), "write `[{eta: 0.1}, {eta: 0.01}]`")
    if set(compare[0]) != set(compare[1]):
        raise _wrong(f"{key}.compare", "two settings of the same parameters", repr(compare), "name them in both")
    for setting in compare:
        for name in setting:
            if name not in keys:
                known = ", ".join(keys) or "it is empty"
                raise _wrong(f"{key}.compare", f"parameters of the grid ({known})", repr(name), "add it to the grid")
        if not any(matches(cell, setting) for cell in cells.values()):
            raise _wrong(f"{key}.compare", "a setting that the grid has", repr(setting), "add its values to the grid")


def _kind(value):
    return {dict: "a mapping", list: "a list", type(None): "nothing"}.get(type(value), repr(value))


def _repeated(values):
    texts = [json.dumps(value, default=str) for value in values]
    return len(set(texts)) < len(texts)


def _word(value):
    text = value if isinstance(value, str) and isinstance(run.value(value), str) else json.dumps(value)
    safe = re.sub(r"[^\w.+-]+", "-", text).strip("-")[:40]
    return safe if safe == text else f"{safe}-{_digest(text)}"


def _digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:6]
