"""One cell of a sweep, in a process of its own that ends with the process that started it, and its kernel with it.

`python -m keras_bond.experiments.cell FILE`: in the file is, as JSON, a dict with `notebook`, `folder`, `parameters`,
`sources` and `files`, with which the names of the cell's own files begin.
"""

import json
import os
import pathlib
import shutil
import signal
import sys
import threading
import time

import filelock
import psutil

from keras_bond.experiments import run
from keras_bond.experiments.provenance import is_finished, record_of
from keras_bond.experiments.results import FILES


def main(task):
    """Run the cell, unless it is finished once its lock is free: then another process has run it meanwhile."""
    threading.Thread(target=_end_with_parent, args=[threading.get_ident()], daemon=True).start()
    with filelock.FileLock(f"{task['files']}.lock"):
        if is_finished(record_of(task["folder"]), task["sources"]):
            return
        shutil.rmtree(task["folder"], ignore_errors=True)
        its = {"sources": task["sources"], "required": FILES}
        run.run(task["notebook"], task["folder"], task["parameters"], progress=False, **its)


def _end_with_parent(main_thread):
    """The parent holds the other end of stdin: however it ends, here comes the end of the file."""
    os.read(0, 1)
    signal.pthread_kill(main_thread, signal.SIGINT)  # as by Ctrl-C: the kernel ends, nothing is recorded
    time.sleep(10)
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(1)


if __name__ == "__main__":
    try:
        main(json.loads(pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")))
    except (KeyboardInterrupt, RuntimeError) as error:  # an error is in run.json
        sys.exit(str(error))
