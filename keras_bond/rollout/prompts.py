"""Where prompts come from: any table of text, held on the host, whose row numbers travel through `fit`."""

import keras
import numpy as np

from keras_bond._checks import check_at_least


class PromptTable(keras.utils.PyDataset):
    """Batches of row numbers over a table of prompts: the text stays on the host, where the reward needs it.

    Args:
        prompts: list, tuple or array of str; a pandas Series or DataFrame; a Hugging Face `Dataset`; a dict of columns; a
            finite `tf.data.Dataset` or `PyDataset` of batches of str or of such dicts. Tables have the prompts in the
            column `prompt`; their other columns reach the reward.
        batch_size: rows a batch.
        num_batches: batches an epoch; by default as many as it takes to see every prompt once.
        shuffle: `True` for training: every batch is full, and epochs continue one endless sequence of fresh permutations
            of the table. `False`: the table in order, the last batch as it falls.
        seed: of the permutations.
        first_batch: where in the sequence of permutations the first epoch starts, in batches.
        share: (index, count): of each batch only the `index`-th of `count` equal parts, for one of several processes.

    Raises:
        ValueError: if there is no prompt, or something is not text; the message says where.
    """

    def __init__(self, prompts, batch_size=32, num_batches=None, shuffle=False, seed=0, first_batch=0, share=(0, 1)):
        super().__init__()
        self.columns = _columns(prompts)
        self.prompts = self.columns.pop("prompt")
        check_at_least(1, batch_size=batch_size, steps_per_epoch=1 if num_batches is None else num_batches)
        self.batch_size, self.shuffle, self.seed, self.first_batch = batch_size, shuffle, seed, first_batch
        self.share = share
        self._length = num_batches or -(-len(self.prompts) // batch_size)
        self._epoch = -1

    def on_epoch_begin(self):
        self._epoch += 1

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        part, parts = self.share
        return (np.split(self._batch(index), parts)[part],)

    def _batch(self, index):
        count = len(self.prompts)
        if not self.shuffle:
            return np.arange(index * self.batch_size, min((index + 1) * self.batch_size, count), dtype="int32")
        first = (self.first_batch + max(self._epoch, 0) * self._length + index) * self.batch_size
        rounds, places = np.divmod(np.arange(first, first + self.batch_size), count)
        orders = {r: np.random.default_rng([self.seed, r]).permutation(count) for r in np.unique(rounds)}
        return np.array([orders[r][p] for r, p in zip(rounds, places, strict=True)], "int32")

    def rows(self, indices):
        """(prompts, columns) of these rows: a list of str, and a dict of lists."""
        return [self.prompts[i] for i in indices], {k: [v[i] for i in indices] for k, v in self.columns.items()}


def _columns(prompts):
    """The table as a dict of equally long lists, `prompt` among them."""
    table = _as_dict(prompts)
    for key, values in table.items():
        if isinstance(values, str):
            raise ValueError(f"`{key}` must be a collection of values, not one str: pass [{values!r:.60}].")
        if key in ("prompts", "completions"):
            raise ValueError(f"A column may not be called `{key}`, a name that the reward is called with: rename it.")
    columns = {
        key: [v.decode() if isinstance(v, bytes) else v for v in values]  # tf.data holds text as bytes
        for key, values in table.items()
    }
    if "prompt" not in columns:
        raise ValueError(f"`prompts` must have a column `prompt`. Received the columns: {sorted(columns)}")
    if not columns["prompt"]:
        raise ValueError("`prompts` is empty: at least one prompt is needed.")
    for i, prompt in enumerate(columns["prompt"]):
        if not isinstance(prompt, str):
            raise ValueError(f"`prompts` must be text. Received at row {i}: {prompt!r:.100} ({type(prompt).__name__})")
    for key, values in columns.items():
        if len(values) != len(columns["prompt"]):
            raise ValueError(
                f"All columns of `prompts` must be equally long. Received {len(columns['prompt'])} prompts and "
                f"{len(values)} values in `{key}`."
            )
    return columns


def _as_dict(prompts):
    if isinstance(prompts, str):
        raise ValueError(f"`prompts` must be a collection of str, not one str: pass [{prompts!r:.60}].")
    if isinstance(prompts, PromptTable):
        return {"prompt": prompts.prompts, **prompts.columns}
    if isinstance(prompts, dict):
        return prompts
    if isinstance(prompts, keras.utils.PyDataset):
        if prompts.num_batches is None:
            raise ValueError("A `PyDataset` of prompts must have a length. Received one of infinite length.")
        return _concatenate(prompts[i] for i in range(prompts.num_batches))
    if hasattr(prompts, "as_numpy_iterator"):  # tf.data
        if int(prompts.cardinality()) == -1:
            raise ValueError("A `tf.data.Dataset` of prompts must be finite: call `take(...)` after `repeat()`.")
        return _concatenate(prompts.as_numpy_iterator())
    if hasattr(prompts, "column_names"):  # Hugging Face datasets
        return {name: prompts[name] for name in prompts.column_names}
    if getattr(prompts, "ndim", 1) == 2 and hasattr(prompts, "columns"):  # pandas
        return {str(name): prompts[name].tolist() for name in prompts.columns}
    try:
        return {"prompt": prompts.tolist() if hasattr(prompts, "tolist") else list(prompts)}
    except TypeError as error:
        raise ValueError(
            "`prompts` must be a list or array of str, a pandas Series or DataFrame, a Hugging Face Dataset, a dict of "
            f"columns, a tf.data.Dataset or a PyDataset. Received: {type(prompts).__name__}"
        ) from error


def _concatenate(batches):
    table: dict[str, list] = {}
    for batch in batches:
        if isinstance(batch, tuple):
            batch = batch[0]
        for key, values in (batch if isinstance(batch, dict) else {"prompt": batch}).items():
            table.setdefault(key, []).extend(np.atleast_1d(np.asarray(values, object)).tolist())
    return table or {"prompt": []}
