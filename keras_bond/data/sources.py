"""Prompts as people have them: a table that is read at once, or a stream that is read as it comes."""

import itertools
from collections.abc import Iterator, Mapping

import keras
import numpy as np

from keras_bond.data.messages import asked, conversation, is_conversation

TAKEN = ("prompts", "completions", "completion_ids")
"""Names that a reward is called with: no column may have one."""


class Table:
    """Prompts of known number, with their further columns.

    Args:
        prompts: a list, tuple or array of str; a pandas Series or DataFrame; an Arrow or Polars table; a Hugging Face
            `Dataset`; a dict of columns; a list of rows (dicts); a finite `tf.data.Dataset`, `PyDataset` or `DataLoader`.
            Tables have the prompts in the column `prompt`; their other columns reach the reward. A prompt may be a
            conversation, a list of `{"role": ..., "content": ...}`. A table without `prompt` may have whole conversations in
            the column `messages`: their prompt is what comes before the last reply.

    Raises:
        ValueError: if there is no prompt, or one is neither text nor a conversation; the message says where.

    Example:

    >>> Table({"prompt": ["a", "b"], "answer": [1, 2]}).rows([1])
    (['b'], {'answer': [2]})
    """

    def __init__(self, prompts):
        self.columns = _checked(_columns(prompts))
        self.prompts = self.columns.pop("prompt")

    def __len__(self):
        return len(self.prompts)

    def part(self, indices):
        """The `Table` of these rows."""
        prompts, columns = self.rows(indices)
        return Table({"prompt": prompts, **columns})

    def rows(self, indices):
        """(prompts, columns) of these rows: a list of str, and a dict of lists."""
        return [self.prompts[i] for i in indices], {k: [v[i] for i in indices] for k, v in self.columns.items()}


class Stream:
    """Rows, dicts with a `prompt`, of an iterable whose length nobody knows: a generator, an `IterableDataset`, ...

    An iterable that begins anew each time is repeated for ever. An iterator can be read once: it goes on where it was left.
    """

    def __init__(self, prompts):
        self._prompts = prompts
        self.begins_anew = not isinstance(prompts, Iterator)

    def rows(self, start):
        """The rows from number `start` on; of an iterator those that are left.

        Raises:
            ValueError: when there is none, or one is not a prompt; the message says which.
        """
        passes = itertools.repeat(self._prompts) if self.begins_anew else [self._prompts]
        return itertools.islice(self._checked(passes), start if self.begins_anew else 0, None)

    def _checked(self, passes):
        names, count = None, 0
        for items in passes:
            before = count
            for row in (row for item in items for row in _rows(item)):
                names = names or list(row)
                if list(row) != names:
                    raise ValueError(
                        f"All rows of `prompts` must have the columns {names}. Received at row {count}: {row!r:.100}"
                    )
                row = _with_prompt(row, is_conversation, asked)
                _check_names(row)
                (prompt,) = _prompts([row["prompt"]], count)
                yield {**{key: _text(value) for key, value in row.items()}, "prompt": prompt}
                count += 1
            if count == before and self.begins_anew:
                raise ValueError("`prompts` is empty: at least one prompt is needed.")


def is_stream(prompts):
    """Whether `prompts` have no length: then they are read as they come, and `fit` needs `steps_per_epoch`."""
    if isinstance(prompts, keras.utils.PyDataset):
        return prompts.num_batches is None
    if hasattr(prompts, "as_numpy_iterator"):  # tf.data
        return int(prompts.cardinality()) == -1
    return isinstance(prompts, Iterator) or (hasattr(prompts, "__iter__") and not hasattr(prompts, "__len__"))


def stream_of(prompts):
    """`prompts` as an iterable of rows or batches."""
    if hasattr(prompts, "as_numpy_iterator"):
        return Stream(_Anew(prompts.as_numpy_iterator))
    if isinstance(prompts, keras.utils.PyDataset):
        return Stream(_Anew(lambda: (prompts[i] for i in itertools.count())))
    return Stream(prompts)


class _Anew:
    """An iterable that begins with `begin()` each time."""

    def __init__(self, begin):
        self._begin = begin

    def __iter__(self):
        return iter(self._begin())


def _columns(prompts):
    """The table as a dict of columns."""
    if isinstance(prompts, str):
        raise ValueError(f"`prompts` must be a collection of str, not one str: pass [{prompts!r:.60}].")
    if isinstance(prompts, Table):
        return {"prompt": prompts.prompts, **prompts.columns}
    if isinstance(prompts, Mapping) and prompts and all(hasattr(split, "column_names") for split in prompts.values()):
        raise ValueError(
            f"`prompts` must be one split of the `DatasetDict`, such as dataset[{next(iter(prompts))!r}]. "
            f"Received the splits: {', '.join(map(repr, prompts))}"
        )
    if isinstance(prompts, Mapping):
        return dict(prompts)
    if is_stream(prompts):
        raise ValueError(
            "`prompts` must have a length here. Received: "
            f"{type(prompts).__name__}, a stream. In `fit` pass `steps_per_epoch`; elsewhere take a number of its rows, as "
            "in `list(itertools.islice(prompts, 1000))`, or of a `tf.data.Dataset` `take(1000)`."
        )
    if isinstance(prompts, keras.utils.PyDataset):
        return _transposed(prompts[i] for i in range(prompts.num_batches))
    if hasattr(prompts, "as_numpy_iterator"):
        return _transposed(prompts.as_numpy_iterator())
    if hasattr(prompts, "column_names"):  # Arrow, Hugging Face
        return {name: prompts[name] for name in prompts.column_names}
    if len(getattr(prompts, "shape", ())) == 2 and hasattr(prompts, "columns"):  # pandas, Polars
        return {str(name): prompts[name] for name in prompts.columns}
    values = _values(prompts)
    if is_conversation(values):
        raise ValueError(
            f"`prompts` must be a collection of conversations, not one: pass [messages]. Received: {values!r:.200}"
        )
    if any(isinstance(value, Mapping | tuple) for value in values):
        return _transposed(values)
    return {"prompt": values}


def _values(column):
    for method in ("to_pylist", "tolist", "to_list"):
        if hasattr(column, method):
            return getattr(column, method)()
    try:
        return list(column)
    except TypeError as error:
        raise ValueError(
            "`prompts` must be a list or array of str, a pandas Series or DataFrame, an Arrow table, a Hugging Face "
            "Dataset, a dict of columns, a tf.data.Dataset, a PyDataset or an iterable of these. "
            f"Received: {type(column).__name__}"
        ) from error


def _checked(table):
    """The table as a dict of equally long lists, `prompt` among them."""
    for key, values in table.items():
        if isinstance(values, str):
            raise ValueError(f"`{key}` must be a collection of values, not one str: pass [{values!r:.60}].")
    columns = {key: [_text(value) for value in _values(values)] for key, values in table.items()}
    columns = _with_prompt(columns, lambda values: all(map(is_conversation, values)), lambda values: [*map(asked, values)])
    _check_names(columns)
    if not columns["prompt"]:
        raise ValueError("`prompts` is empty: at least one prompt is needed.")
    columns["prompt"] = _prompts(columns["prompt"])
    for key, values in columns.items():
        if len(values) != len(columns["prompt"]):
            raise ValueError(
                f"All columns of `prompts` must be equally long. Received {len(columns['prompt'])} prompts and "
                f"{len(values)} values in `{key}`."
            )
    return columns


def _check_names(names):
    for name in names:
        if name in TAKEN:
            raise ValueError(f"A column may not be called `{name}`, a name that the reward is called with: rename it.")
    if "prompt" not in names:
        raise ValueError(f"`prompts` must have a column `prompt`. Received the columns: {sorted(names)}")


def _with_prompt(columns, holds, ask):
    """`columns` with a `prompt`, where only the conversations are there."""
    if "prompt" in columns or not ("messages" in columns and holds(columns["messages"])):
        return columns
    return {"prompt": ask(columns["messages"]), **columns}


def _prompts(prompts, first=0):
    """The prompts, each a str or a plain conversation, or an error that says which is neither."""
    found = []
    for i, prompt in enumerate(prompts, first):
        if is_conversation(prompt):
            found.append(conversation(prompt, f" at row {i}"))
        elif isinstance(prompt, str | bytes):
            found.append(_text(prompt))
        else:
            messages = isinstance(prompt, list) and any(isinstance(message, Mapping) for message in prompt)
            expected = "text" if not messages else "text, or lists of messages, each a dict with a `role` and a `content`"
            raise ValueError(f"`prompts` must be {expected}. Received at row {i}: {prompt!r:.100} ({type(prompt).__name__})")
    return found


def _is_one(value):
    """Whether `value` is one prompt, and not a batch of them."""
    return is_conversation(value) or not (isinstance(value, list | tuple) or np.ndim(value))


def _text(value):
    return value.decode() if isinstance(value, bytes) else value  # tf.data holds text as bytes


def _rows(item):
    """The rows, dicts, of what an iterable yields: a prompt, a row, or a batch of prompts, rows or columns."""
    if isinstance(item, tuple) and not is_conversation(item):  # what Keras calls inputs, perhaps with targets and weights
        item = item[0]
    if isinstance(item, Mapping):
        if _is_one(item.get("prompt", item.get("messages", ""))):
            return [dict(item)]
        columns = {key: _values(values) for key, values in item.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if _is_one(item):
        return [{"prompt": item.item() if hasattr(item, "item") and not np.ndim(item) else item}]
    return [row for each in _values(item) for row in _rows(each)]


def _transposed(items):
    table: dict[str, list] = {}
    rows = [row for item in items for row in _rows(item)]
    for row in rows:
        for key, value in row.items():
            table.setdefault(key, []).append(value)
    return table or {"prompt": []}
