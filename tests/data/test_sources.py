import itertools

import datasets
import keras
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tensorflow as tf

from keras_bond.data import Table, is_stream
from keras_bond.data.sources import stream_of

pytestmark = pytest.mark.any_backend

TEXT = ["My fellow", "We must", "The state of", "Our äußerst"]
TOPIC, YEAR = ["greeting", "duty", "union", "ours"], [1, 2, 3, 4]
TABLE = {"prompt": TEXT, "topic": TOPIC, "year": YEAR}


class Batches(keras.utils.PyDataset):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def generator(batches):
    """A tf.data.Dataset of unknown length."""
    return tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=tf.TensorSpec((None,), tf.string))


LISTS = {
    "list": TEXT,
    "tuple": tuple(TEXT),
    "array": np.array(TEXT),
    "object array": np.array(TEXT, object),
    "bytes": [t.encode() for t in TEXT],
    "array of bytes": np.array([t.encode() for t in TEXT]),
    "Series": pd.Series(TEXT, index=[9, 8, 7, 6]),
    "table": Table(TEXT),
    "dict": {"prompt": np.array(TEXT)},
    "tf.data": tf.data.Dataset.from_tensor_slices(TEXT),
    "tf.data batches": tf.data.Dataset.from_tensor_slices(TEXT).batch(3),
    "tf.data of unknown length": generator([TEXT[:3], TEXT[3:]]),
    "PyDataset": Batches([TEXT[:3], TEXT[3:]]),
    "PyDataset of tuples": Batches([(np.array(TEXT[:1]),), (np.array(TEXT[1:]),)]),
}
TABLES = {
    "dict": TABLE,
    "dict of arrays": {key: np.array(values) for key, values in TABLE.items()},
    "DataFrame": pd.DataFrame(TABLE, index=[9, 8, 7, 6]),
    "Hugging Face": datasets.Dataset.from_dict(TABLE),
    "Arrow": pa.table(TABLE),
    "Arrow batch": pa.record_batch(TABLE),
    "rows": [dict(zip(TABLE, row, strict=True)) for row in zip(*TABLE.values(), strict=True)],
    "table": Table(TABLE),
    "tf.data": tf.data.Dataset.from_tensor_slices(TABLE),
    "tf.data batches": tf.data.Dataset.from_tensor_slices(TABLE).batch(3),
    "PyDataset": Batches([{key: values[:3] for key, values in TABLE.items()}, {k: v[3:] for k, v in TABLE.items()}]),
}


@pytest.mark.parametrize("source", LISTS.values(), ids=LISTS)
def test_texts_alone(source):
    assert Table(source).rows(range(4)) == (TEXT, {})


@pytest.mark.parametrize("source", TABLES.values(), ids=TABLES)
def test_columns_travel_with_the_prompts(source):
    prompts, columns = Table(source).rows([2, 0, 2])
    assert prompts == ["The state of", "My fellow", "The state of"]
    assert columns == {"topic": ["union", "greeting", "union"], "year": [3, 1, 3]}
    assert {type(t) for t in prompts + columns["topic"]} <= {str, np.str_}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("My fellow", "`prompts` must be a collection of str, not one str: pass ['My fellow']."),
        ([], "`prompts` is empty: at least one prompt is needed."),
        ({"prompt": []}, "`prompts` is empty: at least one prompt is needed."),
        (tf.data.Dataset.from_tensor_slices(TEXT).take(0), "`prompts` is empty: at least one prompt is needed."),
        (Batches([]), "`prompts` is empty: at least one prompt is needed."),
        ({"text": TEXT, "a": YEAR}, "`prompts` must have a column `prompt`. Received the columns: ['a', 'text']"),
        (pd.DataFrame({"text": TEXT}), "`prompts` must have a column `prompt`. Received the columns: ['text']"),
        (["a", 7], "`prompts` must be text. Received at row 1: 7 (int)"),
        (pd.Series(["a", "b", None], dtype=object), "`prompts` must be text. Received at row 2: None (NoneType)"),
        (np.array([["a", "b"]]), "`prompts` must be text. Received at row 0: ['a', 'b'] (list)"),
        ([["x" * 200]], "`prompts` must be text. Received at row 0: ['" + "x" * 98 + " (list)"),
        (
            {"prompt": TEXT, "topic": TOPIC[:3]},
            "All columns of `prompts` must be equally long. Received 4 prompts and 3 values in `topic`.",
        ),
        (
            tf.data.Dataset.from_tensor_slices(TEXT).repeat(),
            "`prompts` must have a length here. Received: _RepeatDataset, a stream. In `fit` pass `steps_per_epoch`; "
            "elsewhere take a number of its rows, as in `list(itertools.islice(prompts, 1000))`, or of a `tf.data.Dataset` "
            "`take(1000)`.",
        ),
        (
            datasets.DatasetDict(train=datasets.Dataset.from_dict(TABLE), test=datasets.Dataset.from_dict(TABLE)),
            "`prompts` must be one split of the `DatasetDict`, such as dataset['train']. "
            "Received the splits: 'train', 'test'",
        ),
        (
            7,
            "`prompts` must be a list or array of str, a pandas Series or DataFrame, an Arrow table, a Hugging Face "
            "Dataset, a dict of columns, a tf.data.Dataset, a PyDataset or an iterable of these. Received: int",
        ),
        (
            None,
            "`prompts` must be a list or array of str, a pandas Series or DataFrame, an Arrow table, a Hugging Face "
            "Dataset, a dict of columns, a tf.data.Dataset, a PyDataset or an iterable of these. Received: NoneType",
        ),
    ],
)
def test_what_is_not_a_table_of_prompts(source, message):
    with pytest.raises(ValueError) as error:
        Table(source)
    assert str(error.value) == message


class Endless(keras.utils.PyDataset):
    num_batches = None

    def __getitem__(self, index):
        return TEXT


def count():
    """A fresh iterator without an end."""
    return (f"prompt {i}" for i in itertools.count())


STREAMS = {
    "generator": count(),
    "map": map(str, itertools.count()),
    "IterableDataset": datasets.IterableDataset.from_generator(lambda: ({"prompt": t} for t in TEXT)),
    "endless PyDataset": Endless(),
    "endless tf.data": tf.data.Dataset.from_tensor_slices(TEXT).repeat(),
}


@pytest.mark.parametrize("source", STREAMS.values(), ids=STREAMS)
def test_what_has_no_length_is_a_stream_and_no_table(source):
    assert is_stream(source)
    with pytest.raises(ValueError, match="`prompts` must have a length here"):
        Table(source)


@pytest.mark.parametrize("source", [*LISTS.values(), *TABLES.values()], ids=[*LISTS, *TABLES])
def test_what_has_a_length_is_no_stream(source):
    assert not is_stream(source)


def test_a_str_for_a_column_and_a_column_with_a_taken_name():
    with pytest.raises(ValueError, match=r"`prompt` must be a collection of values, not one str: pass \['ab'\]"):
        Table({"prompt": "ab"})
    with pytest.raises(ValueError, match="A column may not be called `completions`"):
        Table({"prompt": ["a"], "completions": ["b"]})


def test_conversations():
    """As TRL and others keep them: in `prompt`, or whole in `messages`."""
    ask, reply = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    assert Table([[ask], "c", (ask, reply, ask)]).prompts == [[ask], "c", [ask, reply, ask]]
    table = Table([{"messages": [ask, reply], "answer": 1}, {"messages": [ask, reply, ask], "answer": 2}])
    assert table.prompts == [[ask], [ask, reply, ask]]
    assert table.columns == {"messages": [[ask, reply], [ask, reply, ask]], "answer": [1, 2]}
    arrow = pa.table({"prompt": [[{"role": "user", "content": "a", "name": None}]]})
    assert Table(arrow).prompts == Table(arrow.to_pandas()).prompts == [[ask]]
    assert [*stream_of(iter([[ask]])).rows(0)] == [{"prompt": [ask]}]
    assert [*stream_of(iter([{"messages": [ask, reply]}])).rows(0)] == [{"prompt": [ask], "messages": [ask, reply]}]
    with pytest.raises(ValueError, match=r"must be a collection of conversations, not one: pass \[messages\]"):
        Table([ask, reply])
    with pytest.raises(ValueError, match=r"or lists of messages, each a dict with .* Received at row 0"):
        Table([[ask, {"text": "b"}]])
