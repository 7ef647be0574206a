"""One folder for each checkpoint: `state.safetensors`, arrays by name, and `manifest.json`, which says whose they are.

    folder/step-00000050/state.safetensors    policy/..., anchor/..., reference/..., optimizer/..., seeds/..., cursor
    folder/step-00000050/manifest.json        format, algorithm, settings, position, versions, digest of the arrays

A checkpoint holds what a run changes. Frozen weights, all of the backbone under LoRA, are not in it: the manifest has their
fingerprint. It is written beside its place, flushed to the disk, and renamed: a folder with a step's name is whole.
"""

import datetime
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import shutil
import tempfile
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from keras_bond.rollout import process_share

FORMAT = 1
"""Of the folder; a newer one is refused."""
ARRAYS, MANIFEST = "state.safetensors", "manifest.json"
PACKAGES = ("keras-bond", "keras", "keras-hub", "jax", "tensorflow", "torch")
SAMPLE = 2**14
"""Weights of a frozen variable that its fingerprint looks at."""
_STEP = re.compile(r"step-(\d{8,})")


class Snapshot(NamedTuple):
    """A trainer's state in the host's memory."""

    step: int
    """Optimizer updates so far."""
    arrays: dict[str, np.ndarray]
    manifest: dict[str, Any]


def snapshot(trainer, position=None, arrays=None, identity=None):
    """Copy the state of a compiled trainer to the host; `write` puts it on the disk, in another thread if wanted.

    Args:
        trainer: an `AlignmentTrainer`. Between two steps of `fit`, call `trainer.sync()` before.
        position: JSON values that `restore` gives back: where a run stands beside its variables.
        arrays: name -> array, to be written and given back with it.
        identity: of the trainer, where it has been asked before: `identity_of(trainer)` reads all frozen weights.

    Returns:
        `Snapshot`. Of several processes all must call it.
    """
    state = trainer.named_state()
    values = {name: _on_host(variable.value) for name, variable in state.items()}
    manifest = {
        "format": FORMAT,
        "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "backend": keras.config.backend(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        **(identity or identity_of(trainer)),
        "settings": _settings(trainer),
        "position": position or {},
    }
    return Snapshot(int(trainer.optimizer.iterations), values | (arrays or {}), manifest)


def save(trainer, folder, position=None, arrays=None, keep=None):
    """Write a checkpoint of a compiled trainer, `snapshot` and `write` in one.

    Args:
        trainer, position, arrays: see `snapshot`.
        folder: of all checkpoints of the run; made where it is not there.
        keep: how many of the newest stay, at least 1; by default all.

    Returns:
        The checkpoint's `pathlib.Path`.

    Raises:
        OSError: if it cannot be written, to a full disk say. The checkpoints before it stand as they were.

    Example:

    ```python
    keras_bond.checkpoints.save(trainer, "run")  # run/step-00000100
    keras_bond.checkpoints.restore(trainer, keras_bond.checkpoints.latest("run"))
    ```
    """
    return write(snapshot(trainer, position, arrays), folder, keep)


def write(taken, folder, keep=None):
    """Put a `Snapshot` into `folder`, and forget all but the `keep` newest; of several processes the first writes."""
    folder = pathlib.Path(folder)
    path = folder / f"step-{taken.step:08d}"
    if process_share()[0] > 0:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    beside = pathlib.Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
    try:
        save_file({name: np.array(array, order="C") for name, array in taken.arrays.items()}, beside / ARRAYS)
        manifest = taken.manifest | {"step": taken.step, "sha256": _sha256(beside / ARRAYS)}
        (beside / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for file in (beside / ARRAYS, beside / MANIFEST):
            _flush(file)
        beside.chmod(0o777 & ~_umask())
        if path.exists():  # of a run that went back to an earlier step
            shutil.rmtree(path)
        beside.rename(path)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"A checkpoint could not be written to {str(path)!r}: {error}. The checkpoints before it are whole."
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    for old in steps(folder)[: -keep if keep else 0]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def steps(folder):
    """The checkpoints in `folder`, oldest first: a list of `pathlib.Path`."""
    folder = pathlib.Path(folder)
    found = [path for path in folder.iterdir() if _STEP.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def latest(folder):
    """The newest checkpoint in `folder`, a `pathlib.Path`; `None` where there is none."""
    return (steps(folder) or [None])[-1]


def restore(trainer, path):
    """Give a compiled trainer of the same configuration the state of a checkpoint.

    Args:
        trainer: an `AlignmentTrainer`, compiled.
        path: a checkpoint: `latest(folder)`, say.

    Returns:
        (manifest, arrays): what the checkpoint says of itself, with the `position` that was saved, and `changed`, the
        settings that the trainer has otherwise, "name: before -> now"; and the arrays in it that are not the trainer's.

    Raises:
        ValueError: if the checkpoint is not whole, of a newer format, or of another algorithm, model, LoRA rank or
            optimizer. Nothing has been changed then.
    """
    manifest, arrays = read(trainer, path)
    assign(trainer, arrays)
    return manifest, arrays


def read(trainer, path):
    """As `restore`, without giving the trainer its state: that is among the arrays, for `assign`."""
    manifest, arrays = _read(pathlib.Path(path))
    _check_fits(trainer, path, manifest, arrays)
    manifest["changed"] = _changed_settings(trainer, manifest)
    return manifest, arrays


def assign(trainer, arrays):
    """Give the trainer its state out of what `read` returned; what is left are the other arrays."""
    for name, variable in trainer.named_state().items():
        variable.assign(arrays.pop(name))


def _changed_settings(trainer, manifest):
    """A list of "name: before -> now"."""
    before, now = manifest["settings"], json.loads(json.dumps(_settings(trainer)))
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [f"{name}: {before.get(name)} -> {now.get(name)}" for name in names]


def _read(path):
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        known = isinstance(manifest["format"], int)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"`path` must be a checkpoint, a folder with {ARRAYS} and {MANIFEST}. Received: {str(path)!r}, where {error!r}"
        ) from error
    if not known or manifest["format"] > FORMAT:
        raise ValueError(
            f"The checkpoint {str(path)!r} has the format {manifest['format']!r}, and this version of keras_bond reads up "
            f"to {FORMAT}: install the version that wrote it, {manifest.get('versions', {}).get('keras-bond', 'a newer')}."
        )
    try:
        whole = _sha256(path / ARRAYS) == manifest["sha256"]
        arrays = load_file(path / ARRAYS) if whole else {}
    except (OSError, KeyError, SafetensorError):
        whole, arrays = False, {}
    if not whole:
        raise ValueError(
            f"The checkpoint {str(path)!r} is damaged: its arrays are not those that were written. Remove the folder to go "
            "on from the checkpoint before it."
        )
    return manifest, arrays


def _check_fits(trainer, path, manifest, arrays):
    if not trainer.compiled:
        raise ValueError("The trainer must be compiled before a checkpoint is loaded, which has its optimizer's state.")
    for name, expected in identity_of(trainer).items():
        if manifest.get(name) != expected:
            raise ValueError(
                f"The checkpoint {str(path)!r} must be of the same {name} as this trainer, {expected!r}. "
                f"Received: {manifest.get(name)!r}. Make the trainer as it was, or take another folder."
            )
    theirs = {name: tuple(array.shape) for name, array in arrays.items() if not name.startswith("callbacks/")}
    ours = {name: tuple(variable.shape) for name, variable in trainer.named_state().items()}
    names = sorted(name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name))
    if names:
        raise ValueError(
            f"The checkpoint {str(path)!r} does not fit this trainer at {len(names)} arrays. The first: {names[0]!r} has "
            f"the shape {theirs.get(names[0])} there and {ours.get(names[0])} here. Make the trainer with the same policy, "
            "LoRA rank, anchor and optimizer, or take another folder."
        )


def identity_of(trainer):
    """What must be the same where a checkpoint is loaded."""
    policy = trainer.policy
    return {
        "algorithm": type(trainer).__name__,
        "model": type(policy).__name__,
        "frozen weights": fingerprint(policy.non_trainable_variables),
    }


def fingerprint(variables):
    """A digest of the shapes, and of up to `SAMPLE` weights of each of some variables."""
    digest = hashlib.sha256()
    for variable in variables:
        if not keras.backend.is_float_dtype(variable.dtype):  # the state of a random generator
            continue
        values = ops.reshape(variable.value, (-1,))
        values = _on_host(values[:: max(1, -(-values.shape[0] // SAMPLE))])
        digest.update(f"{tuple(variable.shape)}".encode())
        digest.update(np.asarray(values, "float32").tobytes())
    return digest.hexdigest()


def _settings(trainer):
    """The settings of trainer and optimizer, without names that depend on what was made before."""
    settings = {name: value for name, value in trainer.get_config().items() if name not in ("policy", "reward")}
    settings |= {f"optimizer {name}": value for name, value in trainer.optimizer.get_config().items()}
    return _nameless(settings)


def _nameless(config):
    if not isinstance(config, dict):
        return config
    left_out = ("name", "dtype", "optimizer name", "build_config", "module", "registered_name")
    return {name: _nameless(value) for name, value in config.items() if name not in left_out}


def _on_host(value):
    """As NumPy array, in one piece; a copy, so that training can go on meanwhile."""
    if keras.config.backend() == "jax" and not value.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.array(multihost_utils.process_allgather(value, tiled=True))
    return np.array(ops.convert_to_numpy(value))


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path):
    """Have the disk hold what was written."""
    if os.name == "nt" and path.is_dir():
        return
    number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
