import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from keras_bond.rollout import PromptTable

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


class HuggingFace:
    """What PromptTable knows of a `datasets.Dataset`."""

    column_names = tuple(TABLE)

    def __getitem__(self, name):
        return TABLE[name]


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
    "iterator": iter(TEXT),
    "Series": pd.Series(TEXT, index=[9, 8, 7, 6]),
    "table": PromptTable(TEXT),
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
    "Hugging Face": HuggingFace(),
    "table": PromptTable(TABLE),
    "tf.data": tf.data.Dataset.from_tensor_slices(TABLE),
    "tf.data batches": tf.data.Dataset.from_tensor_slices(TABLE).batch(3),
    "PyDataset": Batches([{key: values[:3] for key, values in TABLE.items()}, {k: v[3:] for k, v in TABLE.items()}]),
}


@pytest.mark.parametrize("source", LISTS.values(), ids=LISTS)
def test_texts_alone(source):
    assert PromptTable(source).rows(range(4)) == (TEXT, {})


@pytest.mark.parametrize("source", TABLES.values(), ids=TABLES)
def test_columns_travel_with_the_prompts(source):
    prompts, columns = PromptTable(source).rows([2, 0, 2])
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
            "A `tf.data.Dataset` of prompts must be finite: call `take(...)` after `repeat()`.",
        ),
        (
            7,
            "`prompts` must be a list or array of str, a pandas Series or DataFrame, a Hugging Face Dataset, a dict of "
            "columns, a tf.data.Dataset or a PyDataset. Received: int",
        ),
        (
            None,
            "`prompts` must be a list or array of str, a pandas Series or DataFrame, a Hugging Face Dataset, a dict of "
            "columns, a tf.data.Dataset or a PyDataset. Received: NoneType",
        ),
    ],
)
def test_what_is_not_a_table_of_prompts(source, message):
    with pytest.raises(ValueError) as error:
        PromptTable(source)
    assert str(error.value) == message


def test_a_pydataset_must_have_a_length():
    class Endless(keras.utils.PyDataset):
        def __getitem__(self, index):
            return TEXT

        @property
        def num_batches(self):
            return None

    with pytest.raises(ValueError, match=r"A `PyDataset` of prompts must have a length. Received one of infinite length."):
        PromptTable(Endless())


@pytest.mark.parametrize(
    ("arguments", "received"),
    [
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1. Received: batch_size=0"),
        ({"batch_size": 2.0}, "`batch_size` must be an integer of at least 1. Received: batch_size=2.0"),
        ({"num_batches": -1}, "`steps_per_epoch` must be an integer of at least 1. Received: steps_per_epoch=-1"),
        ({"num_batches": 1.5}, "`steps_per_epoch` must be an integer of at least 1. Received: steps_per_epoch=1.5"),
        ({"num_batches": 0}, "`steps_per_epoch` must be an integer of at least 1. Received: steps_per_epoch=0"),
    ],
)
def test_sizes_must_be_positive_integers(arguments, received):
    with pytest.raises(ValueError) as error:
        PromptTable(TEXT, **arguments)
    assert str(error.value) == received


def prompts(count):
    return [f"prompt {i}" for i in range(count)]


def epoch(table):
    table.on_epoch_begin()
    return [table[i][0] for i in range(len(table))]


@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (8, 4), (3, 4), (1, 1)])
def test_in_order_the_last_batch_is_what_is_left(count, batch_size):
    table = PromptTable(prompts(count), batch_size)
    for _ in range(2):
        batches = epoch(table)
        assert [b.dtype for b in batches] == ["int32"] * len(batches)
        assert [b.tolist() for b in batches] == [
            list(range(first, min(first + batch_size, count))) for first in range(0, count, batch_size)
        ]


def test_in_order_the_batches_can_be_fewer():
    assert [b.tolist() for b in epoch(PromptTable(prompts(10), 3, num_batches=2))] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("count", "batch_size", "num_batches"), [(10, 4, None), (8, 4, None), (3, 8, None), (7, 3, 1), (5, 2, 9)]
)
def test_shuffled_epochs_run_on_through_fresh_permutations(count, batch_size, num_batches):
    """Epochs end within a permutation, and batches reach over its end: still each prompt once per permutation."""
    table = PromptTable(prompts(count), batch_size, num_batches, shuffle=True)
    length = num_batches or -(-count // batch_size)
    assert len(table) == length
    batches = [batch for _ in range(12) for batch in epoch(table)]
    assert {(b.shape, str(b.dtype)) for b in batches} == {((batch_size,), "int32")}
    rows = np.concatenate(batches)
    rounds = rows[: len(rows) // count * count].reshape(-1, count)
    np.testing.assert_array_equal(np.sort(rounds, axis=1), np.tile(np.arange(count), (len(rounds), 1)))
    assert len(np.unique(rounds, axis=0)) > 1
    assert (rounds != np.arange(count)).any()


def test_shuffled_batches_read_in_any_order_are_the_same():
    """Keras' workers ask for batches in any order, before the first epoch begins too."""
    table = PromptTable(prompts(10), 4, shuffle=True)
    before = [table[i][0].tolist() for i in (2, 0, 1)]
    first = [b.tolist() for b in epoch(table)]
    assert before == [first[2], first[0], first[1]]


def test_a_later_start_skips_what_was_seen():
    """As if the batches before it had been drawn, so that a second `fit` goes on where the first one ended."""
    whole, rest = (PromptTable(prompts(10), 4, shuffle=True, first_batch=first) for first in (0, 5))
    seen, later = ([b.tolist() for _ in range(4) for b in epoch(table)] for table in (whole, rest))
    assert later[:7] == seen[5:]


def test_the_seed_decides_the_order():
    def order(seed):
        table = PromptTable(prompts(20), 6, shuffle=True, seed=seed)
        return np.concatenate([b for _ in range(3) for b in epoch(table)]).tolist()

    assert order(0) == order(0)
    assert len({tuple(order(seed)) for seed in range(4)}) == 4
    assert order(0) == np.concatenate([np.random.default_rng([0, r]).permutation(20) for r in range(4)])[:72].tolist()


def test_shuffling_is_fair():
    """Each of 4 prompts is first about equally often: 400 permutations, 4 standard errors."""
    table = PromptTable(prompts(4), 4, num_batches=400, shuffle=True)
    first = np.bincount([b[0] for b in epoch(table)], minlength=4)
    assert (np.abs(first - 100) < 4 * np.sqrt(400 * 0.25 * 0.75)).all()


def test_fit_sees_the_epochs_one_after_the_other(to_numpy):
    """The model is built, as our trainers are: to build one, Keras would begin an epoch of its own."""

    class Recorder(keras.Model):
        def __init__(self):
            super().__init__()
            self.scale, self.seen, self.built = self.add_weight(shape=()), [], True

        def call(self, rows):
            return self.scale * keras.ops.cast(rows, "float32")

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            self.seen.append(to_numpy(x).tolist())
            return keras.ops.mean(y_pred)

    model, twin = Recorder(), PromptTable(prompts(10), 4, shuffle=True)
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    model.fit(PromptTable(prompts(10), 4, shuffle=True), epochs=3, verbose=0, shuffle=False)
    assert model.seen == [b.tolist() for _ in range(3) for b in epoch(twin)]


def test_a_str_for_a_column_and_a_column_with_a_taken_name():
    with pytest.raises(ValueError, match=r"`prompt` must be a collection of values, not one str: pass \['ab'\]"):
        PromptTable({"prompt": "ab"})
    with pytest.raises(ValueError, match="A column may not be called `completions`"):
        PromptTable({"prompt": ["a"], "completions": ["b"]})
