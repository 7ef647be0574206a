"""The prompts of one `fit` or `evaluate`, batch by batch."""

import concurrent.futures
import itertools
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_bond._checks import check_at_least
from keras_bond.data.lengths import bucket, pad_left
from keras_bond.data.sources import Table, is_stream, stream_of

FILLER = -1
"""The place of a prompt that fills up a batch."""


class Batch(NamedTuple):
    """B prompts: for the device, and for the reward."""

    prompt_ids: Any
    """(B, P) int32, left-padded: every prompt ends in column P - 1."""
    prompt_mask: Any
    """(B, P) int32, 1 at the prompt's tokens."""
    prompts: list
    """B str, or conversations."""
    columns: dict
    """Name -> list of B values, the further columns of the prompts' table."""
    real: Any = None
    """(B,) bool: the others fill a batch up, and count nowhere; `None` where all are real."""

    def rows(self, indices):
        """(prompts, columns) of these rows, as `Table.rows`."""
        return [self.prompts[i] for i in indices], {k: [v[i] for i in indices] for k, v in self.columns.items()}


class Feed(keras.utils.PyDataset):
    """Batches of places, whole numbers, in the order in which prompts are drawn; `take` gives the prompts that stand there.

    Keras carries the places, on every backend and to every process. Text, columns and tokens stay here on the host. So two
    feeds do not know of each other: `evaluate` inside `fit` has one of its own.

    Args:
        prompts: what `Table` takes; in training also a stream: any iterable, which is read, tokenised and forgotten as it
            comes.
        encode: function of a list of prompts to a list of lists of token ids.
        fitting: `Fitting`, what becomes of prompts that are too long.
        batch_size: prompts a batch.
        pad_id: what ids are padded with.
        num_batches: batches an epoch; by default as many as it takes to see every prompt once.
        training: `True`: every batch is full, and epochs go on through one endless order. `False`: every prompt once, in
            order, the last batch as it falls, filled up to a multiple of `multiple`.
        shuffle: in training, whether the order is one fresh permutation of the table after another.
        seed: of the permutations.
        start: function without arguments: the place at which the first epoch begins.
        multiple: of how many prompts a batch must be, for as many devices.
        share: (index, count): of each batch only the `index`-th of `count` equal parts, for one of several processes.

    Raises:
        ValueError: for prompts that are empty, not text or too long; the message says where.
    """

    def __init__(
        self,
        prompts,
        encode,
        fitting,
        batch_size=32,
        pad_id=0,
        num_batches=None,
        training=False,
        shuffle=True,
        seed=0,
        start=lambda: 0,
        multiple=1,
        share=(0, 1),
    ):
        super().__init__()
        batch_size = check_at_least(1, batch_size=batch_size)
        num_batches = None if num_batches is None else check_at_least(1, steps_per_epoch=num_batches)
        self.batch_size, self.training, self.fitting = batch_size, training, fitting
        self._pad_id, self._start, self._multiple, self._share = pad_id, start, multiple, share
        self._source: Any
        if training and is_stream(prompts):
            if num_batches is None:
                raise ValueError(
                    "`steps_per_epoch` must say how long an epoch of a stream is; prompts with a length, such as a list, do "
                    f"without. Received: steps_per_epoch=None with prompts of type {type(prompts).__name__}"
                )
            self._source = _FromStream(stream_of(prompts), encode, fitting, batch_size)
        else:
            self._source = _FromTable(Table(prompts), encode, fitting, seed if training and shuffle else None)
        self._length = num_batches or -(-len(self._source) // batch_size)
        self._first, self._epoch, self._skipped = None, -1, 0

    @property
    def columns(self):
        """The names of the columns; `None` of a stream, which tells them when it is read."""
        return self._source.columns

    def on_epoch_begin(self):
        self._epoch += 1
        if self._epoch == 0:  # not before: a callback may load another place when training begins
            self._first = self._start()

    def skip(self, batches):
        """Leave out so many batches of the first epoch, which were drawn before `start`."""
        self._skipped = batches

    def __len__(self):
        return self._length - (self._skipped if self._epoch <= 0 else 0)

    def __getitem__(self, index):
        first = self._start() if self._first is None else self._first
        batches = self._epoch * self._length - self._skipped if self._epoch > 0 else 0
        first += (batches + index) * self.batch_size
        last = first + self.batch_size if self.training else min(first + self.batch_size, len(self._source))
        part, parts = self._share
        places = np.pad(np.arange(first, last, dtype="int32"), (0, (first - last) % self._multiple), constant_values=FILLER)
        places = np.split(places, parts)[part]
        self._source.prepare(places)
        return (places,)

    def take(self, places):
        """The `Batch` of these places, as wide as the longest of its prompts asks for."""
        places = np.asarray(places)
        real = places != FILLER
        prompts, columns, encoded = self._source.take(np.where(real, places, 0).tolist())
        width = bucket(max(map(len, encoded)), self.fitting.limit)
        ids, mask = pad_left(encoded, width, self._pad_id)
        return Batch(ids, mask, prompts, columns, None if self._multiple == 1 or self.training else real)


class _FromTable:
    def __init__(self, table, encode, fitting, seed):
        stays, encoded = fitting(encode(table.prompts), table.prompts)
        if not stays:
            raise ValueError(f"`prompts` is empty: {fitting.report()}")
        self._table, self._rows, self._seed = table, stays, seed
        self.columns = list(table.columns)
        self._encoded = [np.asarray(ids, "int32") for ids in encoded]  # a tenth of the memory of lists
        self._permutation: tuple = -1, None

    def __len__(self):
        return len(self._rows)

    def prepare(self, places):
        """All is there."""

    def take(self, places):
        rows = [self._row(place) for place in places]
        return *self._table.rows([self._rows[i] for i in rows]), [self._encoded[i] for i in rows]

    def _row(self, place):
        pass_number, row = divmod(place, len(self))
        if self._seed is None:
            return row
        if self._permutation[0] != pass_number:
            order = np.random.default_rng([self._seed, pass_number]).permutation(len(self))
            self._permutation = pass_number, order
        return self._permutation[1][row]


class _FromStream:
    """Of a stream only the rows that are on their way are held."""

    columns = None

    def __init__(self, stream, encode, fitting, chunk):
        self._stream, self._encode, self._fitting, self._chunk = stream, encode, fitting, chunk
        self._waiting: dict = {}
        self._rows: Any = None

    def prepare(self, places):
        """Read up to these places; rows before and between them are other processes'."""
        if self._rows is None:
            first = int(places[0])
            self._rows = enumerate(itertools.chain.from_iterable(_ahead(self._read(first))), first)
            self._next = first
        while self._next <= places[-1]:
            place, row = next(self._rows, (None, None))
            if place is None:
                raise ValueError(
                    f"`prompts` ended after {self._fitting.seen} rows, before `fit` did. Pass an iterable that begins anew "
                    "each time, such as a list, or ask for fewer `steps_per_epoch` or `epochs`."
                )
            if place >= places[0]:
                self._waiting[place] = row
            self._next = place + 1

    def take(self, places):
        rows, encoded = zip(*map(self._waiting.pop, places), strict=True)
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        return columns.pop("prompt"), columns, encoded

    def _read(self, start):
        """Lists of (row, token ids) from place `start` on."""
        dropping = self._fitting.long_prompts == "drop" and self._stream.begins_anew  # a place counts the rows that stay
        rows, skipped = self._stream.rows(0 if dropping else start), start if dropping else 0
        while chunk := list(itertools.islice(rows, self._chunk)):
            texts = [row["prompt"] for row in chunk]
            stays, encoded = self._fitting(self._encode(texts), texts)
            yield [(chunk[i], ids) for i, ids in zip(stays, encoded, strict=True)][skipped:]
            skipped = max(0, skipped - len(stays))


def _ahead(iterator):
    """The items of an iterator, each made in a thread while the one before it is in use."""
    end = object()
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, iterator, end)
            yield item
