"""What the command line is given by name: models, rewards, files of prompts."""

import csv
import importlib
import json
import os
import pathlib
import sys

import keras_hub

from keras_bond import presets
from keras_bond.rewards import VaderSentiment


def load_policy(name):
    """The `CausalLM` of a bundled preset, of a folder or of a KerasHub preset name.

    Raises:
        ValueError: if there is no such preset, or it is not a `CausalLM`.
    """
    bundled = presets.names()
    known = name in keras_hub.models.CausalLM.presets or "://" in name
    if not (name in bundled or known or pathlib.Path(name, "config.json").is_file()):
        raise ValueError(
            f"expected a bundled preset ({', '.join(bundled)}), the folder of a preset or the name of a KerasHub preset, "
            f"received {name!r}"
        )
    try:
        return keras_hub.models.CausalLM.from_preset(presets.path(name) if name in bundled else name)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{name!r} cannot be loaded as a causal language model: {error}") from error


def load_reward(name):
    """The reward of this name: `vader`, or `module:attribute` from the current folder or an installed package.

    A class is instantiated without arguments.

    Raises:
        ValueError: if there is no such reward or it is not callable.

    Example:

    >>> load_reward("vader")([""], [" wonderful"])[0] > 0
    True
    """
    if name == "vader":
        return VaderSentiment()
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"expected vader or module:attribute, received {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a module may do when it is run
        raise ValueError(f"the module of {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        raise ValueError(f"the module {module_name} has no attribute {attribute!r}")
    reward = getattr(module, attribute)
    if isinstance(reward, type):
        try:
            reward = reward()
        except Exception as error:
            raise ValueError(f"{name}() raised {type(error).__name__}: {error}") from error
    if not callable(reward):
        raise ValueError(f"expected something to call with prompts and completions, {name} is a {type(reward).__name__}")
    return reward


def read_prompts(path, column="prompt"):
    """A dict of columns, `prompt` among them, from a file of prompts.

    Args:
        path: `.csv` with a header; `.jsonl` with an object a line; anything else is text with a prompt a line. UTF-8;
            blank lines are skipped.
        column: the one to insist on.

    Returns:
        Dict of equally long lists.

    Raises:
        ValueError: if there is no such file, no row in it or no such column; the message names file and line.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}")
    read = {".csv": _csv, ".jsonl": _jsonl}.get(path.suffix.lower(), _text)
    try:
        with path.open(encoding="utf-8-sig", newline="" if read is _csv else None) as file:
            rows = list(read(file))
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not text in UTF-8: {error}") from error
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{str(path)!r}, {error}") from error
    if not rows:
        raise ValueError(f"there is no {column} in {str(path)!r}")
    first = rows[0][1]
    if column not in first:
        raise ValueError(f"{str(path)!r} has no column `{column}`, but {', '.join(map(str, first)) or 'none at all'}")
    for line, row in rows:
        if row.keys() != first.keys():
            raise ValueError(f"{str(path)!r}, line {line}: expected the columns {', '.join(map(str, first))}, as above")
    return {name: [row[name] for _, row in rows] for name in first}


def _text(file):
    return ((i, {"prompt": line.rstrip("\n")}) for i, line in enumerate(file, 1) if line.strip())


def _csv(file):
    reader = csv.DictReader(file, strict=True)
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"line {reader.line_num}: expected as many values as the header has")
        yield reader.line_num, row


def _jsonl(file):
    for i, line in enumerate(file, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {i}: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"line {i}: expected an object, received {line.strip():.60}")
            yield i, row
