"""Where a result comes from: the code, and what it ran on."""

import importlib.metadata
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
