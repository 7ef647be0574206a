"""A CSV file with one row per update."""

import csv
import time

import keras


class StepLogger(keras.callbacks.Callback):
    """Writes the metrics of every update to a CSV file as it happens (Keras' CSVLogger writes one row per epoch).

    Columns: `step` (1, 2, ...), `seconds` since training began, then the metrics. A file that exists is replaced.

    Args:
        filename: of the CSV file.

    The rows so far are also in `rows`, a list of dicts.
    """

    def __init__(self, filename):
        super().__init__()
        self.filename = filename
        self.rows = []

    def on_train_begin(self, logs=None):
        self._start = time.perf_counter()
        self._file = open(self.filename, "w", newline="")  # noqa: SIM115 - closed when training ends
        self._writer = csv.DictWriter(self._file, ["step", "seconds", *(metric.name for metric in self.model.metrics)])
        self._writer.writeheader()

    def on_train_batch_end(self, batch, logs=None):
        seconds = round(time.perf_counter() - self._start, 3)
        self.rows.append({"step": len(self.rows) + 1, "seconds": seconds, **{k: float(v) for k, v in logs.items()}})
        self._writer.writerow(self.rows[-1])
        self._file.flush()

    def on_train_end(self, logs=None):
        self._file.close()
