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
        self.rows: list = []
        self._seconds = 0.0
        self._resumed: tuple | None = None

    def on_train_begin(self, logs=None):
        self.rows, self._seconds = self._resumed or ([], 0.0)
        self._resumed = None
        self._file = open(self.filename, "w", newline="")  # noqa: SIM115 - closed when training ends
        self._writer = csv.DictWriter(self._file, ["step", "seconds", *(metric.name for metric in self.model.metrics)])
        self._writer.writeheader()
        self._writer.writerows(self.rows)
        self._file.flush()

    def on_train_batch_begin(self, batch, logs=None):
        self._started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        values = {name: float(value) for name, value in logs.items()}  # waits for the update to finish
        self._seconds += time.perf_counter() - self._started
        self.rows.append({"step": len(self.rows) + 1, "seconds": round(self._seconds, 3), **values})
        self._writer.writerow(self.rows[-1])
        self._file.flush()

    # For `Checkpoint`: rows of steps that were lost, and are made again, go.

    def state(self, folder):
        return {"rows": len(self.rows), "seconds": self._seconds}

    def resume(self, state, folder):
        count = state["rows"]
        try:
            with open(self.filename, newline="") as file:
                rows = [dict(row) for row, _ in zip(csv.DictReader(file), range(count), strict=False)]
            rows = [{name: float(value) for name, value in row.items()} | {"step": int(row["step"])} for row in rows]
        except (OSError, ValueError, TypeError, KeyError):
            rows = []
        if len(rows) < count:
            raise ValueError(
                f"`filename` must have the {count} rows that were written before the checkpoint, for a run that goes on. "
                f"Received: filename={str(self.filename)!r}, with {len(rows)} whole ones. Put the file back, or log to "
                "another with a `Checkpoint` in another folder."
            )
        self._resumed = rows, state["seconds"]

    def on_train_end(self, logs=None):
        self._file.close()
