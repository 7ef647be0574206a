"""The order of prompts, and what travels with them."""

import itertools

import keras
import numpy as np
import pytest

from keras_bond.data import Feed, Fitting


def encode(texts):
    """A start token, and a token for each character."""
    return [[2, *map(ord, text)] for text in texts]


def feed_of(prompts, batch_size=4, num_batches=None, long_prompts="error", limit=16, **settings):
    return Feed(prompts, encode, Fitting(limit, long_prompts), batch_size, num_batches=num_batches, **settings)


def prompts(count):
    return [f"prompt {i}" for i in range(count)]


def epoch(feed):
    """The prompts of each batch of the next epoch, as Keras and a trainer ask for them."""
    feed.on_epoch_begin()
    return [feed.take(feed[i][0]).prompts for i in range(len(feed))]


def numbers(batches):
    return [int(prompt.split()[-1]) for batch in batches for prompt in batch]


def test_a_batch_has_tokens_texts_and_columns():
    feed = feed_of({"prompt": ["abc", "d" * 9], "answer": [1, None]}, pad_id=7)
    batch = feed.take(feed[0][0])
    assert batch.prompts == ["abc", "d" * 9]
    assert batch.columns == {"answer": [1, None]}
    assert batch.prompt_ids.tolist() == [[7] * 8 + [2, 97, 98, 99], [7, 7, 2] + [100] * 9]
    assert batch.prompt_mask.tolist() == [[0] * 8 + [1] * 4, [0, 0] + [1] * 10]
    assert feed.take([0]).prompt_ids.shape == (1, 8)  # as wide as its own prompts ask for


@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (8, 4), (3, 4), (1, 1)])
def test_in_evaluation_every_prompt_comes_once_in_order(count, batch_size):
    feed = feed_of(prompts(count), batch_size)
    assert [place.dtype for (place,) in (feed[i] for i in range(len(feed)))] == ["int32"] * len(feed)
    batches = epoch(feed)
    assert numbers(batches) == [*range(count)]
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}


@pytest.mark.parametrize(
    ("count", "batch_size", "num_batches"), [(10, 4, None), (8, 4, None), (3, 8, None), (7, 3, 1), (5, 2, 9)]
)
def test_training_runs_on_through_fresh_permutations(count, batch_size, num_batches):
    """Epochs end within a permutation, and batches reach over its end: still each prompt once per permutation."""
    feed = feed_of(prompts(count), batch_size, num_batches, training=True)
    assert len(feed) == (num_batches or -(-count // batch_size))
    batches = [batch for _ in range(12) for batch in epoch(feed)]
    assert {len(batch) for batch in batches} == {batch_size}
    rows = np.array(numbers(batches))
    rounds = rows[: len(rows) // count * count].reshape(-1, count)
    np.testing.assert_array_equal(np.sort(rounds, axis=1), np.tile(np.arange(count), (len(rounds), 1)))
    assert len(np.unique(rounds, axis=0)) > 1
    assert (rounds != np.arange(count)).any()


def test_training_in_order_goes_round():
    feed = feed_of(prompts(5), 4, training=True, shuffle=False)
    assert numbers(epoch(feed) + epoch(feed)) == [i % 5 for i in range(16)]


def test_batches_read_in_any_order_are_the_same():
    """TensorFlow asks for some before the first epoch begins, and again in it."""
    feed = feed_of(prompts(10), training=True)
    before = [feed.take(feed[i][0]).prompts for i in (2, 0, 1)]
    first = epoch(feed)
    assert before == [first[2], first[0], first[1]]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("long_prompts", ["error", "drop"])
def test_a_later_start_goes_on_where_the_other_ended(stream, long_prompts):
    """The place is read when the first epoch begins: a callback may have loaded it just before."""
    texts = prompts(10) if long_prompts == "error" else [*prompts(5), "much too long a prompt", *prompts(10)[5:]]
    start = 0

    def feed():
        source = Anew(texts) if stream else texts
        return feed_of(source, 4, 3, long_prompts, training=True, start=lambda: start)

    whole = feed()
    seen = [batch for _ in range(4) for batch in epoch(whole)]
    rest = feed()
    start = 5 * 4
    later = [batch for _ in range(2) for batch in epoch(rest)]
    assert later == seen[5:11]


class Anew:
    """An iterable without a length that begins anew each time."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def test_the_seed_decides_the_order():
    def order(seed):
        feed = feed_of(prompts(20), 6, training=True, seed=seed)
        return numbers(batch for _ in range(3) for batch in epoch(feed))

    assert order(0) == order(0)
    assert len({tuple(order(seed)) for seed in range(4)}) == 4
    assert order(0) == np.concatenate([np.random.default_rng([0, r]).permutation(20) for r in range(4)])[:72].tolist()


def test_shuffling_is_fair():
    """Each of 4 prompts is first about equally often: 400 permutations, 4 standard errors."""
    first = np.bincount(numbers([b[:1] for b in epoch(feed_of(prompts(4), 4, 400, training=True))]), minlength=4)
    assert (np.abs(first - 100) < 4 * np.sqrt(400 * 0.25 * 0.75)).all()


def test_each_process_has_its_part_of_every_batch():
    whole = epoch(feed_of(prompts(10), 4, training=True))
    for source in (prompts(10), Anew(prompts(10))):
        parts = [feed_of(source, 4, 3, training=True, shuffle=isinstance(source, list), share=(i, 2)) for i in range(2)]
        joined = [one + other for one, other in zip(*map(epoch, parts), strict=True)]
        assert joined == whole if isinstance(source, list) else numbers(joined) == [i % 10 for i in range(12)]


def test_a_stream_is_read_as_it_comes_and_forgotten():
    """Of a million rows those on their way and one chunk ahead are held."""
    made = itertools.count()
    feed = feed_of(({"prompt": f"prompt {i}", "row": i} for i in made), 4, 3, training=True)
    for number in range(5):
        feed.on_epoch_begin()
        for i in range(3):
            batch = feed.take(feed[i][0])
            expected = [*range((3 * number + i) * 4, (3 * number + i + 1) * 4)]
            assert numbers([batch.prompts]) == batch.columns["row"] == expected
    assert next(made) <= 5 * 3 * 4 + 2 * 4 + 1
    assert not feed._source._waiting


def test_an_iterator_that_ends_too_early_and_streams_without_steps():
    feed = feed_of(iter(prompts(6)), 4, 3, training=True)
    feed.on_epoch_begin()
    feed.take(feed[0][0])
    with pytest.raises(ValueError, match="`prompts` ended after 6 rows, before `fit` did"):
        feed[1]
    with pytest.raises(ValueError, match="`steps_per_epoch` must say how long an epoch of a stream is"):
        feed_of(iter(prompts(6)), training=True)
    empty = feed_of(Anew([]), 4, 3, training=True)
    with pytest.raises(ValueError, match="`prompts` is empty"):
        empty[0]
    wrong = feed_of(iter(["a", 7]), 2, 1, training=True)
    with pytest.raises(ValueError, match=r"`prompts` must be text\. Received at row 1: 7"):
        wrong[0]


def test_the_rows_of_a_stream_have_the_same_columns_and_none_with_a_taken_name():
    uneven = feed_of(iter([{"prompt": "a", "answer": 1}, {"prompt": "b"}]), 2, 1, training=True)
    with pytest.raises(
        ValueError, match=r"must have the columns \['prompt', 'answer'\]\. Received at row 1: {'prompt': 'b'}"
    ):
        uneven[0]
    taken = feed_of(iter([{"prompt": "a", "completions": 1}]), 1, 1, training=True)
    with pytest.raises(ValueError, match="A column may not be called `completions`"):
        taken[0]


def test_what_is_dropped_is_never_drawn():
    texts = ["a", "much too long a prompt", "b", "c"]
    assert epoch(feed_of(texts, 2, long_prompts="drop")) == [["a", "b"], ["c"]]
    with pytest.raises(ValueError, match="`prompts` is empty: 1 of 1 prompts had more tokens"):
        feed_of(texts[1:2], long_prompts="drop")


@pytest.mark.parametrize(
    ("arguments", "received"),
    [
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1. Received: batch_size=0"),
        ({"batch_size": 2.0}, "`batch_size` must be an integer of at least 1. Received: batch_size=2.0"),
        ({"num_batches": -1}, "`steps_per_epoch` must be an integer of at least 1. Received: steps_per_epoch=-1"),
        ({"num_batches": 0}, "`steps_per_epoch` must be an integer of at least 1. Received: steps_per_epoch=0"),
    ],
)
def test_sizes_must_be_positive_integers(arguments, received):
    with pytest.raises(ValueError) as error:
        feed_of(prompts(4), **arguments)
    assert str(error.value) == received


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

    model = Recorder()
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    model.fit(feed_of(prompts(10), training=True), epochs=3, verbose=0, shuffle=False)
    assert model.seen == np.arange(36).reshape(9, 4).tolist()
