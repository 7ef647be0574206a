"""A run that is killed goes on where it was."""

import collections
import concurrent.futures
import contextlib
import copy
import pathlib
import signal
import threading
import warnings
from typing import Any

import filelock
import keras
import numpy as np
from keras import ops

from keras_bond import checkpoints
from keras_bond._checks import check_at_least
from keras_bond.rollout import process_share

_OF_KERAS = {
    keras.callbacks.EarlyStopping: ("wait", "best", "best_epoch", "stopped_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
    keras.callbacks.ModelCheckpoint: ("best", "_batches_seen_since_last_saving", "_last_batch_seen"),
}
"""What Keras' callbacks remember between two epochs."""


class Checkpoint(keras.callbacks.Callback):
    """Writes a checkpoint every so many steps, and has the same script, started again, go on from the newest one.

    A run that was killed and started again ends as the uninterrupted one: policy, anchor, optimizer, samples, the order of
    the prompts, epochs, `History`, and the rows of this package's callbacks. On one CPU with JAX it is the same to the last
    bit. Call `fit` with the same arguments as before; where a setting of trainer or optimizer has changed, a warning says
    so, and the checkpoint's own state (a learning rate, say) is what counts. A script that calls `fit` several times with
    one `Checkpoint` goes on in the call that was interrupted; the calls that were finished return at once.

    The arrays are copied between two steps and written in a thread, beside their place; a checkpoint that is half written
    is never read. See `keras_bond.checkpoints` for what a folder holds. At SIGTERM, which a preempted machine receives, the
    step is finished, a checkpoint written, and the process ends with status 143. (One process of several goes at once.)

    Args:
        folder: of the run's checkpoints: of this run alone.
        every: steps between two checkpoints, at least 1.
        keep: how many of the newest stay, at least 1.

    Raises:
        ValueError: when `fit` begins, if another run writes to the folder; or if its checkpoint is damaged, or of another
            algorithm, model, LoRA rank or optimizer. Nothing has been changed then.
        OSError: if a checkpoint cannot be written. The checkpoints before it stand.

    Example:

    ```python
    trainer.fit(prompts, epochs=10, callbacks=[keras_bond.callbacks.Checkpoint("run", every=50)])
    ```
    """

    def __init__(self, folder, every=50, keep=3):
        super().__init__()
        self.folder = pathlib.Path(folder)
        self.every, self.keep = check_at_least(1, every=every, keep=keep)
        self._fits, self._steps = 0, 0  # that have ended in this process; of the run
        self._position: Any = None  # of the checkpoint that this process began with
        self._history: dict[str, Any] = {}
        self._histories: list = []  # of the calls of `fit` that have ended

    @contextlib.contextmanager
    def in_fit(self, trainer, callbacks):
        """Around a call of `fit`, after its arguments have been checked and before Keras' part of it."""
        self._terminated, self._due, self._others = False, False, _stateful(callbacks)
        with self._alone(), self._terminating(), concurrent.futures.ThreadPoolExecutor(1) as self._thread:
            self._writing = None
            if self._fits == 0 and self._steps == 0:
                self._restore(trainer)
            elif self._position is not None:  # a call after those that were finished, whose callbacks began anew
                self._resume()
            self._identity = checkpoints.identity_of(trainer)
            try:
                yield
            finally:
                trainer._initial_epoch = None
            self._wait()

    # Where a run stands.

    def on_train_begin(self, logs=None):
        self._begin()
        position = self._position
        if position is None:
            return
        if position["fit"] > self._fits:  # this call was finished
            self._history = position["histories"][self._fits]
            self._epoch = self.params["epochs"]
            last = position["fit"] == self._fits + 1 and position["epoch"] == position["step"] == 0
            if last and self._history["asked"] < self._epoch:  # and is to go on
                self._epoch = self._history["epochs"]
                self._position = position | {"fit": self._fits, "epoch": self._epoch, "history": self._history}
        else:
            self._epoch, self._step, self._history = position["epoch"], position["step"], position["history"]
        self.model._initial_epoch = self._epoch
        self.model._feed.skip(self._step)
        if self.params.get("verbose"):
            print(f"Going on from {self._path}, after {self._steps} steps of the run.")

    def on_epoch_begin(self, epoch, logs=None):
        if not (self._position and self._position["fit"] == self._fits and epoch == self._epoch):
            return
        # Keras has reset the means of this epoch, and its callbacks theirs of all epochs
        for name, value in self._arrays.items():
            if name in self._means():
                self._means()[name].assign(value)
        self._tell_history()
        for name, callback in self._others.items():
            if isinstance(callback, tuple(_OF_KERAS)):
                vars(callback).update(self._position["callbacks"].get(name, {}))
        self._position = None

    def on_train_batch_end(self, batch, logs=None):
        self._step, self._steps = self._step + 1, self._steps + 1
        self._due = self._due or self._terminated or self._steps % self.every == 0
        if self._due and self._step < self.params["steps"]:
            self._save()

    def on_epoch_end(self, epoch, logs=None):
        self._epoch, self._step = epoch + 1, 0
        self._history["epoch"].append(epoch)
        self._history["epochs"] = self._epoch
        for name, value in (logs or {}).items():
            self._history["history"].setdefault(name, []).append(float(value))
        if self._due and self._epoch < self.params["epochs"]:  # at the end there is one in any case
            self._save()

    def on_train_end(self, logs=None):
        self._tell_history()
        finished = self._position is not None and self._position["fit"] > self._fits
        self._fits += 1
        self._histories.append(self._history | {"asked": self.params["epochs"]})
        if not finished:
            self._begin()
            self._save()

    def _save(self):
        self._due = False
        self.model.sync()
        means = self._means() if self._step else {}  # of an epoch that has begun
        callbacks, arrays = {}, {name: np.array(ops.convert_to_numpy(v.value)) for name, v in means.items()}
        for name, callback in self._others.items():
            state = _state(callback, self.folder)
            callbacks[name] = {key: value for key, value in state.items() if not isinstance(value, np.ndarray)}
            arrays |= {f"callbacks/{name}/{key}": value for key, value in state.items() if isinstance(value, np.ndarray)}
        position = {
            "fit": self._fits,
            "epoch": self._epoch,
            "step": self._step,
            "steps": self._steps,
            "steps_per_epoch": self.params["steps"],
            "batch_size": self.model._feed.batch_size,
            "history": self._history,
            "histories": self._histories,
            "callbacks": callbacks,
        }
        taken = checkpoints.snapshot(self.model, position, arrays, self._identity)._replace(step=self._steps)
        self._wait()
        self._writing = self._thread.submit(checkpoints.write, taken, self.folder, self.keep)
        if self._terminated:
            self._wait()
            raise SystemExit(128 + signal.SIGTERM)

    def _begin(self):
        self._epoch, self._step = 0, 0
        self._history = {"epochs": 0, "epoch": [], "history": {}}

    def _tell_history(self):
        history = copy.deepcopy(self._history)
        self.model.history.epoch, self.model.history.history = history["epoch"], history["history"]

    def _wait(self):
        if self._writing is not None:
            self._writing.result()

    def _means(self):
        return {
            f"callbacks/means/{metric.name}/{variable.name}": variable
            for metric in self.model.metrics
            for variable in metric.variables
        }

    # Where it begins.

    def _restore(self, trainer):
        path = checkpoints.latest(self.folder)
        if path is None:
            return
        manifest, arrays = checkpoints.read(trainer, path)
        position = manifest["position"]
        if "fit" not in position:
            raise ValueError(
                "`folder` must hold the checkpoints of a `Checkpoint`, which know their place in `fit`. "
                f"Received: {str(path)!r}, which `checkpoints.save` wrote: load it with `checkpoints.restore`, and take "
                "another folder."
            )
        now = {"batch_size": trainer._feed.batch_size, "steps_per_epoch": len(trainer._feed)}
        before = {name: position[name] for name in now}
        if position["step"] and before != now:
            raise ValueError(
                f"A run that stopped within an epoch must go on with the same `batch_size` and prompts: {before}. "
                f"Received: {now}. Call `fit` as before, or take another `folder`."
            )
        if changed := manifest["changed"]:
            warnings.warn(
                f"The run goes on from {str(path)!r}, whose settings were others: {'; '.join(changed)}. Where a setting is "
                "part of the optimizer's state, as its learning rate, the checkpoint's value stands.",
                stacklevel=6,
            )
        self._arrays = {name: array for name, array in arrays.items() if name.startswith("callbacks/")}
        self._position = position
        try:
            self._resume()
        except ValueError:
            self._position = None
            raise
        self._path, self._steps = path, position["steps"]
        checkpoints.assign(trainer, arrays)  # nothing can be wrong any more

    def _resume(self):
        """Give the callbacks their positions."""
        for name, callback in self._others.items():
            arrays = {key.removeprefix(f"callbacks/{name}/"): v for key, v in self._arrays.items() if f"/{name}/" in key}
            if hasattr(callback, "resume") and name in self._position["callbacks"]:
                callback.resume(self._position["callbacks"][name] | arrays, self.folder)
            if isinstance(callback, keras.callbacks.CSVLogger):
                callback.append = True

    @contextlib.contextmanager
    def _alone(self):
        if process_share()[0] > 0:
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise ValueError(
                f"`folder` must belong to one run. Received: folder={str(self.folder)!r}, to which another process writes "
                "now: wait for it, or take another folder."
            ) from error
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _terminating(self):
        if threading.current_thread() is not threading.main_thread() or process_share()[1] > 1:  # each at another step
            yield
            return

        def terminate(number, frame):
            self._terminated = True

        before = signal.signal(signal.SIGTERM, terminate)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
        if self._terminated:
            raise SystemExit(128 + signal.SIGTERM)


def _stateful(callbacks):
    """Name -> callback, of those that have a position of their own."""
    named, counts = {}, collections.Counter[str]()
    for callback in callbacks:
        if hasattr(callback, "resume") or isinstance(callback, (*_OF_KERAS, keras.callbacks.CSVLogger)):
            kind = type(callback).__name__
            counts[kind] += 1
            named[f"{kind}-{counts[kind]}"] = callback
    return named


def _state(callback, folder):
    if hasattr(callback, "resume"):
        return callback.state(folder)
    names = next((names for kind, names in _OF_KERAS.items() if isinstance(callback, kind)), ())
    state = {name: getattr(callback, name) for name in names if hasattr(callback, name)}
    return {name: float(value) if isinstance(value, np.floating) else value for name, value in state.items()}
