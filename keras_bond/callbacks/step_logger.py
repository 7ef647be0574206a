"""A CSV file with one row per update."""

import csv
import time

import keras


class StepLogger(keras.callbacks.Callback):
    """Writes the metrics of every update to a CSV file as it happens (Keras' CSVLogger writes one row per epoch).

    Columns: `step` (1, 2, ...), `seconds` spent in updates so far (other callbacks' time is not in it, if this one comes
    first), then the metrics. A file that exists is replaced.

    Args:
        filename: of the CSV file.

    The rows so far are also in `rows`, a list of dicts.
    """

    def __init__(self, filename):
        super().__init__()
        self.filename = filename
        self.rows = []

    def on_train_begin(self, logs=None):
        self.rows, self._seconds = [], 0.0
        self._file = open(self.filename, "w", newline="")  # noqa: SIM115 - closed when training ends
        self._writer = csv.DictWriter(self._file, ["step", "seconds", *(metric.name for metric in self.model.metrics)])
        self._writer.writeheader()

    def on_train_batch_begin(self, batch, logs=None):
        self._started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        values = {name: float(value) for name, value in logs.items()}  # waits for the update to finish
        self._seconds += time.perf_counter() - self._started
        self.rows.append({"step": len(self.rows) + 1, "seconds": round(self._seconds, 3), **values})
        self._writer.writerow(self.rows[-1])
        self._file.flush()

    def on_train_end(self, logs=None):
        self._file.close()
