"""What a sweep is: a YAML file, read and checked before anything runs.

name: ema                          # required; also the title of the report, if there is no `title`
title: EMA against hard updates
notebook: 01_quickstart            # required; a file, or the name of one in ./notebooks
parameters: {steps: 90, beta: 0.5} # the same in every cell; what is named nowhere stays as the notebook has it
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

from keras_bond.experiments import notebook as notebooks
from keras_bond.experiments.results import PARAMETERS
from keras_bond.experiments.values import is_json, text_of

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
    notebook: notebooks.Notebook
    keys: list
    """The parameters that vary, `seed` aside."""
    parameters: dict
    """Those that are the same in every cell."""
    cells: dict
    """Name of the cell -> its place: `seed`, and a value for each of `keys`."""
    given: dict
    """Name of the cell -> what the notebook is given, `output` aside."""
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
    """A readable folder name that these values determine, and no others do; no file system takes two of them for one.

    >>> cell_name({"eta": 0.02, "anchor": "ema", "seed": 1})
    'eta=0.02,anchor=ema,seed=1'
    >>> cell_name({"reward": "my module:f", "anchor": "EMA"})
    'reward=my-module-f-964e8b,anchor=EMA-af9daf'
    """
    name = ",".join(f"{key}={_word(value)}" for key, value in values.items())
    short = name.encode()[:190].decode(errors="ignore")
    return name if len(name.encode()) <= 200 else f"{short}-{_digest(name)}"


def label_of(values):
    """The same for people: each value as it is typed, but for the end of a long one.

    >>> label_of({"eta": 0.02, "n": "4", "anchor": None})
    'eta = 0.02, n = "4", anchor = null'
    """
    texts = {key: text_of(value) for key, value in values.items()}
    return ", ".join(f"{k} = {text if len(text) <= 60 else f'{text[:48]}... {_digest(text)}'}" for k, text in texts.items())


def setting_of(place, keys):
    """The values of the grid in a cell, a dict."""
    return {key: place[key] for key in keys}


def matches(place, setting):
    """Whether a cell has these values: 1 is neither 1.0 nor true."""
    return all(text_of(place[key]) == text_of(value) for key, value in setting.items())


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
    defaults = notebook.parameters
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
    cells, given = {}, {}
    for grid in grids:
        own = {key: defaults[key] for key in keys if key not in grid and key not in fixed}
        for name, default in own.items():
            if isinstance(default, notebooks.Source):
                expected = "a value in each grid, since the notebook's own is no literal"
                raise _wrong(
                    f"grid.{name}", expected, f"none beside {', '.join(grid)}", "add it to that grid, or to `parameters`"
                )
        for point in itertools.product(*grid.values()):
            for seed in seeds:
                its = {**fixed, **dict(zip(grid, point, strict=True)), "seed": seed}
                place = {key: {**own, **its}[key] for key in (*keys, "seed")}
                cells[cell_name(place)], given[cell_name(place)] = place, its
    findings = loaded.get("findings") or []
    if not isinstance(findings, list):
        raise _wrong("findings", "a list", _kind(findings), "begin each finding with `- `")
    for i, finding in enumerate(findings):
        _check_finding(f"findings[{i}]", finding, keys, cells)
    name = loaded["name"].strip()
    return Spec(name, loaded.get("title", name).strip(), notebook, keys, fixed, cells, given, findings, text)


def _notebook(name):
    try:
        return notebooks.read(name)
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
            raise _wrong(f"{key}.{name}", f"a parameter of {notebook.path.stem} ({known})", repr(name), "correct the name")
        if not is_json(value):
            expected = "numbers, text, true, false, null, or lists of them, or mappings from text to them"
            raise _wrong(f"{key}.{name}", expected, repr(value), "write it in quotes")


def _check_finding(key, finding, keys, cells):
    if not isinstance(finding, dict):
        raise _wrong(key, "a mapping", _kind(finding), f"give it {', '.join(_REQUIRED)}")
    for name in finding:
        if name not in _FINDING:
            raise _wrong(f"{key}.{name}", f"one of {', '.join(sorted(_FINDING))}", repr(name), "correct or remove it")
    for name in _REQUIRED:
        if finding.get(name) is None:
            raise _wrong(f"{key}.{name}", "a value", "none", "add it")
    for name, kinds, expected in (("says", str, "text"), ("metric", str, "text"), ("figure", str | int, "a number or text")):
        if not isinstance(finding.get(name, ""), kinds):
            raise _wrong(f"{key}.{name}", expected, repr(finding[name]), "write it in quotes")
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
    if not (
        isinstance(compare, list) and len(compare) == 2 and all(isinstance(s, dict) and s and is_json(s) for s in compare)
    ):
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
    text = text_of(value)
    safe = re.sub(r"[^a-zA-Z0-9_.+-]+", "-", text).strip("-")[:40]
    return safe if safe == text.lower() else f"{safe}-{_digest(text)}"


def _digest(text):
    return hashlib.sha256(text.encode()).hexdigest()[:6]
