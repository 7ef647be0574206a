"""What the policy writes while it learns."""

import csv
import importlib.util
import pathlib

import keras
import numpy as np
from keras import ops

from keras_bond._checks import check_at_least
from keras_bond.ops import monte_carlo_quantiles
from keras_bond.rollout import Completions


class SampleTable(keras.callbacks.Callback):
    """Shows some of the samples that an update was made of, every so many updates.

    Columns: `step`, `prompt` (as the model saw it), `completion`, `reward`; and with anchor samples `best` (that which the
    forward term imitates most), `best_reward`, and `quantile`, the share of the prompt's anchor samples whose reward is at
    most that of the completion.

    Args:
        every: updates between two tables, at least 1. The first update has one.
        rows: prompts of a table, at least 1: the first of the batch.
        filename: of a CSV file, or of a Parquet file where it ends in `.parquet`, with the rows of all tables; `None` for
            none. A file that exists is replaced, or continued by a run that `Checkpoint` has go on.
        log_dir: folder for TensorBoard, which shows the tables as text; `None` for none.
        terminal: whether the tables are printed.

    The rows so far are also in `table`, a list of dicts.

    Raises:
        ImportError: if `filename` asks for Parquet without pyarrow, or `log_dir` is given without TensorBoard.

    Example:

    ```python
    trainer.fit(prompts, callbacks=[keras_bond.callbacks.SampleTable(every=20, filename="samples.csv")])
    ```
    """

    _updates = 0

    def __init__(self, every=50, rows=4, filename=None, log_dir=None, terminal=True):
        super().__init__()
        self.every, self.rows = check_at_least(1, every=every, rows=rows)
        self.filename = None if filename is None else pathlib.Path(filename)
        self.log_dir, self.terminal = log_dir, terminal
        self.table: list = []
        self._resumed: tuple | None = None
        if log_dir is not None and importlib.util.find_spec("tensorboard") is None:
            raise ImportError("`log_dir` needs the package: pip install 'keras-bond[tensorboard]'")
        if self.filename is not None and self.filename.suffix == ".parquet":
            _parquet()

    def on_train_begin(self, logs=None):
        self.table, self._updates = self._resumed or ([], 0)
        self._resumed = None

    def on_train_batch_end(self, batch, logs=None):
        self._updates += 1
        if (self._updates - 1) % self.every == 0:
            rows = self._rows(self.model.trajectory)
            self.table.extend(rows)
            self._print(rows)
            self._write()
            self._log(rows)

    def state(self, folder):
        return {"table": self.table, "updates": self._updates}

    def resume(self, state, folder):
        self._resumed = state["table"], state["updates"]

    def _rows(self, trajectory):
        rollout, count = self.model.rollout, min(self.rows, len(trajectory.prompt_ids))
        m, (_, contenders) = self.model.num_samples, np.shape(trajectory.contender_weights)
        t = trajectory._replace(groups=None).map(ops.convert_to_numpy)._asdict()
        masks = t["prompt_mask"][:count].astype(bool)
        prompts = [_text(rollout.tokenizer, ids[mask]) for ids, mask in zip(t["prompt_ids"], masks, strict=False)]
        own = slice(0, count * m, m)
        texts = rollout.decode(Completions(t["completion_ids"][own], t["completion_mask"][own], None))
        rows = [
            {"step": self._updates, "prompt": prompt, "completion": text, "reward": float(reward)}
            for prompt, text, reward in zip(prompts, texts, t["reward"][own], strict=True)
        ]
        if contenders:
            best = np.nan_to_num(t["contender_weights"][:count], nan=-1.0).argmax(axis=1) + contenders * np.arange(count)
            of_best = rollout.decode(Completions(t["contender_ids"][best], t["contender_mask"][best], None))
            relative = t["relative_reward"][own], t["relative_anchor_rewards"][own]
            quantiles = ops.convert_to_numpy(monte_carlo_quantiles(*relative)[1])
            rewards = t["anchor_rewards"][own]
            for i, row in enumerate(rows):
                top = np.nanmax(rewards[i]) if not np.isnan(rewards[i]).all() else np.nan
                row |= {"best": of_best[i], "best_reward": float(top), "quantile": float(quantiles[i])}
        return rows

    def _print(self, rows):
        if not self.terminal:
            return
        import rich.console
        import rich.table
        import rich.text

        table = rich.table.Table(title=f"samples of update {self._updates}", show_lines=True)
        for name in rows[0]:
            table.add_column(name)
        for row in rows:  # a completion's own brackets are no markup
            table.add_row(*(rich.text.Text(f"{v:.3g}" if isinstance(v, float) else str(v)) for v in row.values()))
        rich.console.Console().print(table)

    def _write(self):
        if self.filename is None or not self.table:
            return
        if self.filename.suffix == ".parquet":
            arrow, parquet = _parquet()
            parquet.write_table(arrow.Table.from_pylist(self.table), self.filename)
            return
        with open(self.filename, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.table[0])
            writer.writeheader()
            writer.writerows(self.table)

    def _log(self, rows):
        if self.log_dir is None:
            return
        import tensorflow as tf

        def cell(value):
            return (f"{value:.3g}" if isinstance(value, float) else str(value)).replace("|", "\\|").replace("\n", " ")

        lines = [[*rows[0]], ["---"] * len(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
        with tf.summary.create_file_writer(str(self.log_dir)).as_default():
            tf.summary.text("samples", "\n".join("| " + " | ".join(line) + " |" for line in lines), step=self._updates)


def _text(tokenizer, ids):
    text = tokenizer.detokenize(np.asarray(ids, "int32")[None])
    text = text.numpy()[0] if hasattr(text, "numpy") else text[0]
    return text.decode("utf-8", errors="replace") if isinstance(text, bytes) else str(text)


def _parquet():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("A `filename` that ends in .parquet needs the package: pip install pyarrow") from error
    return pyarrow, pyarrow.parquet
