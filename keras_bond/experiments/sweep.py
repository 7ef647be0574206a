"""`keras-bond sweep`: a grid with seeds over one notebook; what `spec` describes, cell by cell.

    DIR/sweep.json               the plan: every cell and its parameters, the findings
    DIR/cells/eta=0.02,seed=0/   the executed notebook, run.json, and what the notebook wrote (see `results`)
    DIR/.sweep/                  of each cell the lock, the task and the output of its process; JAX's compiled programs

A cell is finished when its run.json says so, and says that the notebook and keras_bond were what they are now: cells of two
programs are no sweep. A finished one is never run again. All others, failed and killed ones among them, are run by the same
command. Each runs in a process of its own, which ends with the sweep, even if that is killed.

The workers are joblib's: threads here, each waiting for a cell's process. On a cluster with one file system:

    import dask.distributed, joblib
    from keras_bond.experiments import sweep

    client = dask.distributed.Client("scheduler:8786")
    with joblib.parallel_config("dask"):  # or ray.util.joblib.register_ray() and "ray"
        sweep.run("seeds.yaml", "runs/seeds", jobs=-1)
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import filelock
from joblib import Parallel, delayed
from tqdm import tqdm

from keras_bond.experiments.provenance import is_finished, record, record_of, sources_of, write_whole
from keras_bond.experiments.spec import read
from keras_bond.experiments.values import text_of


def run(spec, output, jobs=1, say=print, rerun=False):
    """Run the cells of a sweep that are not finished.

    Args:
        spec: a YAML file, see `spec`.
        output: folder.
        jobs: cells at a time; -1 for as many as there are cores, or workers in the cluster.
        say: what prints the outcome.
        rerun: whether cells whose notebook or keras_bond was another are run again.

    Returns:
        Dict, name of the cell -> what is in its run.json.

    Raises:
        ValueError: if the spec is wrong, or the folder belongs to another sweep, has cells that were made by another
            notebook or keras_bond, or is being written to by a sweep.
        RuntimeError: if a cell failed; the others have been run all the same.
    """
    plan, shown, output = read(spec), str(output), pathlib.Path(output).absolute()
    hidden, sources = output / ".sweep", sources_of(plan.notebook)
    with _alone(hidden, shown):
        folders = {name: output / "cells" / name for name in plan.cells}
        before = {name: record_of(folder) for name, folder in folders.items()}
        _keep(plan, sources, output, shown, {} if rerun else before)
        todo = [name for name, record in before.items() if not is_finished(record, sources)]
        tasks = [
            {
                "notebook": str(plan.notebook.path.absolute()),
                "folder": str(folders[name]),
                "parameters": {**plan.given[name], "output": str(folders[name])},
                "sources": sources,
                "files": str(hidden / name),
                "environment": _environment(hidden),
                "directory": os.getcwd(),
            }
            for name in todo
        ]
        with tqdm(total=len(plan.cells), initial=len(plan.cells) - len(todo), desc=plan.name, unit="cell") as bar:
            try:
                _Workers(bar, folders, jobs)(delayed(_execute)(task) for task in tasks)
            except KeyboardInterrupt:
                done = sum(is_finished(record_of(folder), sources) for folder in folders.values())
                raise KeyboardInterrupt(f"{done} of {bar.total} cells finished; the same command runs the others") from None
    records = {name: record_of(folder) for name, folder in folders.items()}
    failed = {name: record["error"] for name, record in records.items() if not is_finished(record, sources)}
    done = f"{len(plan.cells) - len(failed)} of {len(plan.cells)} cells finished, {len(todo) - len(failed)} of them now"
    if failed:
        name, error = next(iter(failed.items()))
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise RuntimeError(f"{done}; {len(failed)} failed, and the same command runs them again: {name}: {error}{more}")
    say(f"{plan.name}: {done}. Their report: keras-bond report {shown}")
    return records


class _Workers(Parallel):
    """joblib's, one cell a task, on a progress bar of the whole sweep."""

    def __init__(self, bar, folders, jobs):
        super().__init__(n_jobs=jobs, prefer="threads", batch_size=1, pre_dispatch="all")
        self._bar, self._before, self._folders = bar, bar.n, folders

    def print_progress(self):
        self._bar.n = self._before + self.n_completed_tasks
        records = (record_of(folder) for folder in self._folders.values())
        self._bar.set_postfix(failed=sum(record is not None and record["status"] != "ok" for record in records))


def _execute(task):
    """Run a cell in a process of its own, and see to it that there is a record of it."""
    started, folder = time.time(), pathlib.Path(task["folder"])
    order, log = pathlib.Path(f"{task['files']}.json"), pathlib.Path(f"{task['files']}.log")
    write_whole(order, json.dumps(task))
    with (
        open(log, "w", encoding="utf-8") as written,
        subprocess.Popen(
            [sys.executable, "-m", "keras_bond.experiments.cell", str(order)],
            stdin=subprocess.PIPE,  # its other end is ours: see `cell`
            stdout=written,
            stderr=written,
            env={**os.environ, **task["environment"]},
            cwd=task["directory"],
            start_new_session=True,  # Ctrl-C is for the sweep
        ) as process,
    ):
        status = process.wait()
    found = record_of(folder)
    if found is None or found.get("sources") != task["sources"]:  # then it is of an earlier run
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")
        folder.mkdir(parents=True, exist_ok=True)
        source = pathlib.Path(task["notebook"])
        error = f"{source.stem}: the process of the cell {how}{last}"
        record(source, task["parameters"], error, started, folder, task["sources"])


@contextlib.contextmanager
def _alone(hidden, shown):
    """The operating system holds the lock, and frees it when the process ends in whatever way."""
    hidden.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(hidden / "lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise ValueError(
            f"argument --output: expected a folder of which no sweep is at work, received {shown!r}; wait for "
            "that one to end, or choose another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _keep(plan, sources, output, shown, before):
    """Write sweep.json, unless the folder has cells that are not the plan's, or `before` has some of other sources."""
    new = {"name": plan.name, "title": plan.title, "notebook": plan.notebook.path.stem, "sources": sources}
    new |= {"backend": os.environ.get("KERAS_BACKEND", "jax"), "keys": plan.keys, "parameters": plan.parameters}
    new |= {"cells": plan.cells, "findings": plan.findings, "spec": plan.text}
    path = output / "sweep.json"
    if path.is_file():
        changed = _changed(json.loads(path.read_text(encoding="utf-8")), new)
        if changed:
            raise ValueError(
                f"argument --output: expected the sweep that {shown!r} holds, with cells added at most, "
                f"received one in which {changed}; choose another folder, or undo the change"
            )
    made = [record.get("sources") or {} for record in before.values() if record and record["status"] == "ok"]
    others = [each for each in made if each != sources]
    if others:
        words = {"notebook": f"the notebook {new['notebook']}", "keras_bond": "keras_bond"}
        was = {key: ", ".join(sorted({each.get(key, "unknown") for each in others} - {sources[key]})) for key in sources}
        what = " and ".join(f"{words[key]} is {sources[key]} and was {old}" for key, old in was.items() if old)
        raise ValueError(
            f"argument --output: expected finished cells of the present notebook and keras_bond, received {len(others)} of "
            f"others: {what}; add --rerun to run them again, choose another folder, or undo the change"
        )
    write_whole(path, json.dumps(new, indent=2) + "\n")


def _changed(old, new):
    """What makes two plans different sweeps, in words; None where cells were added at most."""
    for key in ("notebook", "backend"):
        if old[key] != new[key]:
            return f"`{key}` is {new[key]!r} and was {old[key]!r}"
    was, now = (
        {key: text_of(value) for key, value in plan.get("parameters", new["parameters"]).items()} for plan in (old, new)
    )
    for key in {**was, **now}:
        if was.get(key) != now.get(key):
            return f"`{key}` is {now.get(key, 'not set')} and was {was.get(key, 'not set')}"
    missing = [name for name in old["cells"] if name not in new["cells"]]
    return f"the cell {missing[0]!r} is missing" if missing else None


def _environment(hidden):
    """For the cells: the backend of this process, and compiled programs that they share, unless the user has a place."""
    ours = {
        "KERAS_BACKEND": "jax",
        "JAX_COMPILATION_CACHE_DIR": str(hidden / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return {name: os.environ.get(name, value) for name, value in ours.items()}
