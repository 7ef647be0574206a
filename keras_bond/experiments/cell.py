"""One cell of a sweep, in a process of its own that ends with the process that started it, and its kernel with it.

`python -m keras_bond.experiments.cell TASK`: TASK is a dict as JSON with `notebook`, `folder`, `parameters` and `lock`.
"""

import json
import os
import pathlib
import shutil
import sys
import threading

import filelock
import psutil

from keras_bond.experiments import run
from keras_bond.experiments.results import FILES


def finished(folder):
    """Whether the cell in this folder has its result."""
    return (record_of(folder) or {}).get("status") == "ok"


def record_of(folder):
    """What is in the cell's `run.json`; None where there is none."""
    try:
        return json.loads((pathlib.Path(folder) / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def main(task):
    """Run the cell, unless it is finished once its lock is free: then another process has run it meanwhile."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with filelock.FileLock(task["lock"]):
        if finished(task["folder"]):
            return
        shutil.rmtree(task["folder"], ignore_errors=True)
        run.run(task["notebook"], task["folder"], task["parameters"], required=FILES, progress=False)


def _end_with_parent():
    """The parent holds the other end of stdin: however it ends, here comes the end of the file."""
    os.read(0, 1)
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(1)


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]))
    except RuntimeError as error:  # in run.json
        sys.exit(str(error))
