"""Where a result comes from: the code, and what it ran on; and a record of it that is never half written."""

import collections
import importlib.metadata
import os
import pathlib
import platform
import subprocess


def revision(folder):
    """The git commit of a folder, with `-dirty` where something is not committed; `None` where there is no git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return result.stdout.strip() or None


def versions():
    """What is installed, by name: Python, keras_bond and what it stands on."""
    found = {"python": platform.python_version()}
    for name in ("keras_bond", "keras", "keras_hub", "jax", "tensorflow", "torch", "numpy", "papermill"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # not a backend that is used, or keras_bond from its source
            continue
    return found


def host():
    """The machine, in words.

    >>> host().endswith("cores")
    True
    """
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def device():
    """What Keras' backend computes on, in words: `2 x NVIDIA H100 80GB HBM3`, or the host. The backend is loaded for it."""
    import keras

    backend, found = keras.config.backend(), []
    if backend == "jax":
        import jax

        found = [d.device_kind for d in jax.devices() if d.platform != "cpu"]
    elif backend == "tensorflow":
        import tensorflow as tf

        details = (tf.config.experimental.get_device_details(d) for d in tf.config.list_physical_devices("GPU"))
        found = [d.get("device_name", "GPU") for d in details]
    elif backend == "torch":
        import torch

        found = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{count} x {kind}" for kind, count in collections.Counter(found).items()) or host()


def write_whole(path, content):
    """A file of this text, or these bytes, that is there in full or not at all, whenever the process is killed."""
    path = pathlib.Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    temporary.replace(path)
