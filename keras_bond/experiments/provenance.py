"""Where a result comes from: the code, and what it ran on; and a record of it that is never half written."""

import collections
import datetime
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import time

from keras_bond.experiments.values import json_of


def sources_of(notebook):
    """Digests of the code that makes a run, a dict: that of its `Notebook`, and that of this package."""
    package = pathlib.Path(__file__).parents[1]
    files = sorted(path for path in package.rglob("*.py"))
    code = (text for path in files for text in (path.relative_to(package).as_posix(), path.read_text(encoding="utf-8")))
    return {"notebook": notebook.digest, "keras_bond": digest(code)}


def digest(texts):
    """Twelve letters and figures that a sequence of texts determines.

    >>> digest(["a", "b"]) == digest(["a", "b"]), digest(["a", "b"]) == digest(["ab"])
    (True, False)
    """
    return hashlib.sha256(json.dumps([*texts]).encode()).hexdigest()[:12]


def record(path, parameters, error, started, output, sources):
    """Write `run.json` to `output`; returns what is in it.

    Its keys: `notebook`, `parameters` (all of them, with the values that the kernel had: where JSON has no such value, its
    `repr`; if the run did not come so far, those that were set), `status` ("ok" or "failed"), `error` (a line, or None),
    `seconds`, `date`, `backend`, `device` (as the notebook wrote it to `device.txt`, or else the machine), `revision` (of
    the notebook's git repository, or None), `sources` (the digests of the notebook's code and of this package), `versions`.
    """
    device = output / "device.txt"
    result = {
        "notebook": path.stem,
        "parameters": {name: json.loads(json_of(its)) for name, its in parameters.items()},
        "status": "failed" if error else "ok",
        "error": error,
        "seconds": round(time.time() - started, 1),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "backend": os.environ.get("KERAS_BACKEND", "jax"),
        "device": device.read_text(encoding="utf-8").strip() if device.is_file() else host(),
        "revision": revision(path.parent),
        "sources": sources,
        "versions": versions(),
    }
    write_whole(output / "run.json", json.dumps(result, indent=2) + "\n")
    return result


def record_of(folder):
    """What is in `run.json` of a folder; None where there is none."""
    try:
        return json.loads((pathlib.Path(folder) / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def is_finished(record, sources):
    """Whether a run has its result, made by these sources: see `sources_of`."""
    return record is not None and record["status"] == "ok" and record.get("sources") == sources


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
