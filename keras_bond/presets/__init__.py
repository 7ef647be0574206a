"""The bundled presets: a small model and its prompts, so that everything runs without a network."""

import json
import pathlib
import weakref

_FOLDER = pathlib.Path(__file__).parent
_LOADED: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def names():
    """The names of the bundled presets.

    >>> names()
    ['tiny_gemma']
    """
    return sorted(path.parent.name for path in _FOLDER.glob("*/config.json"))


def path(name):
    """The folder of a bundled preset, for `keras_hub.models.CausalLM.from_preset`.

    Raises:
        ValueError: if there is no such preset; the message lists those there are.
    """
    if name not in names():
        raise ValueError(f"There is no bundled preset of that name. Expected one of {names()}. Received: {name!r}")
    return str(_FOLDER / name)


def load(name, dtype=None):
    """The `CausalLM` of a bundled preset, of a folder or of a KerasHub preset name.

    Args:
        name: str, or the path of a folder.
        dtype: of the weights, such as `"bfloat16"`; as the preset has it by default.

    Raises:
        ValueError: if there is no such preset, or it is not a `CausalLM`.
    """
    import keras_hub  # here, so that a path is had without a backend

    name, bundled = str(name), names()
    known = name in keras_hub.models.CausalLM.presets or "://" in name
    if not (name in bundled or known or pathlib.Path(name, "config.json").is_file()):
        raise ValueError(
            f"expected a bundled preset ({', '.join(bundled)}), the folder of a preset or the name of a KerasHub preset, "
            f"received {name!r}"
        )
    kwargs = {} if dtype is None else {"dtype": dtype}
    try:
        causal_lm = keras_hub.models.CausalLM.from_preset(path(name) if name in bundled else name, **kwargs)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{name!r} cannot be loaded as a causal language model: {error}") from error
    _LOADED[causal_lm] = path(name) if name in bundled else name
    return causal_lm


def origin(causal_lm):
    """The folder or name that `load` made a model of; `None` of others, for KerasHub's models do not tell.

    >>> origin(load("tiny_gemma")) == path("tiny_gemma")
    True
    """
    return _LOADED.get(causal_lm)


def generation_config(causal_lm):
    """What `generation_config.json` says in the folder that `load` had a model from; `eos_token_id` as a list.

    An empty dict where there is no such file, or it is not one.
    """
    try:
        config = json.loads(pathlib.Path(origin(causal_lm), "generation_config.json").read_text(encoding="utf-8"))
        ends = config.get("eos_token_id", [])
    except (OSError, ValueError, TypeError, AttributeError):  # no folder, no file, no object
        return {}
    return config | {"eos_token_id": ends if isinstance(ends, list) else [ends]}


def prompts(name, split="train"):
    """The prompts that go with a bundled preset: a list of str.

    Args:
        name: of the preset.
        split: `"train"`, `"validation"` or `"test"`; no address is in two of them, and no prompt either.

    >>> len(prompts("tiny_gemma", "test")) >= 512
    True
    """
    splits = ("train", "validation", "test")
    if split not in splits:
        raise ValueError(f"`split` must be one of {splits}. Received: split={split!r}")
    return pathlib.Path(path(name), f"prompts_{split}.txt").read_text(encoding="utf-8").splitlines()
