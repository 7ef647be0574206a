import asyncio
import fractions
import functools
import itertools
import re
import sys

import keras
import numpy as np
import pandas as pd
import pytest
import torch

from keras_bond.rewards import Reward, RewardError, VaderSentiment, call_reward, check_reward

PROMPTS, COMPLETIONS = ["One", "Two", "Three"], [" a", " bb", " ccc"]
COLUMNS = {"weight": [2.0, 3.0, 4.0], "topic": ["x", "y", "z"]}


def call(reward, columns=COLUMNS):
    return call_reward(reward, PROMPTS, COMPLETIONS, columns)


def length(prompts, completions):
    return [len(p) + len(c) / 10 for p, c in zip(prompts, completions, strict=True)]


class Length(Reward):
    def __call__(self, prompts, completions, **columns):
        return length(prompts, completions)


def tensor(values):
    return keras.ops.convert_to_tensor(values, "float32")


def torch_tensor(values, dtype="float64"):
    return torch.tensor(values, dtype=getattr(torch, dtype), requires_grad=True)


KINDS = {
    "list": list,
    "tuple": tuple,
    "array": np.array,
    "tensor": tensor,
    "Torch tensor in training": torch_tensor,  # as a classifier answers, whatever the backend
    "iterator": iter,
    "generator": lambda values: (v for v in values),
    "map": lambda values: map(float, values),
    "values of a dict": lambda values: dict(enumerate(values)).values(),
    "Series": lambda values: pd.Series(values, index=[7, 7, 8]),
    "DataFrame": lambda values: pd.DataFrame({0: values}),
    "column": lambda values: np.array(values)[:, None],
    "column of lists": lambda values: [[v] for v in values],
    "scalars of NumPy": lambda values: [np.float64(v) for v in values],
    "scalars of the backend": lambda values: [tensor(v) for v in values],
    "arrays of one": lambda values: [np.array([v]) for v in values],
    "fractions": lambda values: [fractions.Fraction(v) for v in values],
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_answer_becomes_float64(kind):
    ours = call(lambda prompts, completions: kind(length(prompts, completions)))
    assert ours.dtype == "float64"
    np.testing.assert_allclose(ours, [3.2, 3.3, 5.4], rtol=1e-6)


@pytest.mark.parametrize("kind", [list, lambda v: torch_tensor(v, "bfloat16"), lambda v: keras.ops.cast(v, "bfloat16")])
def test_answer_keeps_its_own_digits(kind):
    assert call(lambda prompts, completions: kind([1.0, 2.5, -3.0])).tolist() == [1.0, 2.5, -3.0]


def test_answer_is_as_exact_as_python():
    assert call(lambda prompts, completions: [1e9 - len(c) for c in completions]).tolist() == [1e9 - 2, 1e9 - 3, 1e9 - 4]
    assert call(lambda completions: [c == " bb" for c in completions]).tolist() == [0.0, 1.0, 0.0]
    assert call(lambda completions: [np.bool_(True), 2**53, np.int8(-1)]).tolist() == [1.0, 2.0**53, -1.0]


@pytest.mark.parametrize("reward", [length, Length(), functools.partial(length)], ids=["function", "Reward", "partial"])
def test_any_callable_will_do(reward):
    np.testing.assert_allclose(call(reward), [3.2, 3.3, 5.4], rtol=1e-6)


def test_reward_gets_lists_of_its_own():
    def reward(prompts, completions):
        assert (type(prompts), type(completions)) == (list, list)
        prompts.clear()
        completions.clear()
        return [0.0, 1.0, 2.0]

    prompts, completions = list(PROMPTS), list(COMPLETIONS)
    call_reward(reward, prompts, completions, {})
    assert (prompts, completions) == (PROMPTS, COMPLETIONS)


def test_columns_go_only_where_they_are_accepted():
    seen = []

    def none(prompts, completions):
        seen.append({})
        return [0, 0, 0]

    def one(prompts, completions, topic):
        seen.append({"topic": topic})
        return [0, 0, 0]

    def optional(prompts, completions, *, weight=None, other=7):
        seen.append({"weight": weight, "other": other})
        return [0, 0, 0]

    def every(prompts, completions, **columns):
        seen.append(columns)
        return [0, 0, 0]

    for reward in (none, one, optional, every):
        call(reward)
    assert seen == [{}, {"topic": COLUMNS["topic"]}, {"weight": COLUMNS["weight"], "other": 7}, COLUMNS]


def test_a_reward_that_raises():
    def judge(prompts, completions):
        raise KeyError("no such model")

    with pytest.raises(RewardError) as error:
        call(judge)
    assert str(error.value) == (
        "The `reward` function `judge` raised KeyError: 'no such model' It was given 3 completions, the first for the "
        "prompt 'One'. The policy is as it was after the last step."
    )
    assert isinstance(error.value.__cause__, KeyError)


def test_an_iterator_that_raises_or_never_ends():
    def broken(completions):
        yield 1.0
        raise KeyError("no such model")

    with pytest.raises(RewardError, match=r"^The `reward` function `broken` raised KeyError: 'no such model'"):
        call(broken)
    with pytest.raises(RewardError, match=r"expected 3. Received: 4$"):
        call(lambda completions: itertools.repeat(1.0))


def test_a_missing_column_is_named():
    def judge(prompts, completions, answer):
        return [0, 0, 0]

    with pytest.raises(ValueError, match=r"Received: `judge\(prompts, completions, answer\)`, which needs `answer`$"):
        call(judge)


def test_what_a_reward_needs_is_known_before_it_is_called():
    judge = lambda completions, answer: 1 / 0  # noqa: E731
    check_reward(judge)  # the columns are not known yet
    check_reward(judge, ["answer", "topic"])
    with pytest.raises(ValueError, match=r"which needs `answer`$"):
        check_reward(judge, ["topic"])
    with pytest.raises(ValueError, match=r"^A column may not be called `completion_ids`, a name that the reward is called"):
        check_reward(judge, ["answer", "completion_ids"])
    with pytest.raises(ValueError, match=r"^`reward` must be a callable .* Received: reward='vader'$"):
        check_reward("vader")


@pytest.mark.parametrize(
    ("answer", "received"),
    [
        (["good", "bad", "good"], "['good', 'bad', 'good']"),
        (["1", "2", "3"], "['1', '2', '3']"),
        ("123", "'123'"),
        (b"123", "b'123'"),
        ({" a": 1.0, " bb": 2.0, " ccc": 3.0}, "{' a': 1.0, ' bb': 2.0, ' ccc': 3.0}"),
        ({1.0: " a", 2.0: " bb", 3.0: " ccc"}, "{1.0: ' a', 2.0: ' bb', 3.0: ' ccc'}"),
        ({1.0: "", 2.0: "", 3.0: ""}.keys(), "dict_keys([1.0, 2.0, 3.0])"),
        (frozenset([1.0]), "frozenset({1.0})"),
        ([{"score": 1.0}] * 3, "[{'score': 1.0}, {'score': 1.0}, {'score': 1.0}]"),
        ([{1.0}] * 3, "[{1.0}, {1.0}, {1.0}]"),
        ([1.0, 2.0, 1j], "[1.0, 2.0, 1j]"),
        ([1.0, 2.0, 10**400], "[1.0, 2.0, 1" + "0" * 188),
        (None, "None"),
        (3.0, "3.0"),
        (np.float32(3), "np.float32(3.0)"),
        (np.array(3.0), "array(3.)"),
        ([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], "[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]"),
        ([[], [], []], "[[], [], []]"),
        (["x" * 500] * 3, "['" + "x" * 198),
    ],
    ids=str,
)
def test_an_answer_that_is_not_numbers(answer, received):
    def judge(prompts, completions):
        return answer

    with pytest.raises(RewardError) as error:
        call(judge)
    assert str(error.value) == (
        f"The `reward` function `judge` must return one number per completion, or `None` to abstain. Received: {received}"
    )


@pytest.mark.parametrize("count", [0, 2, 4])
def test_an_answer_of_the_wrong_length(count):
    with pytest.raises(RewardError) as error:
        call(lambda prompts, completions: [1.0] * count)
    assert str(error.value) == (
        f"The `reward` function `<lambda>` must return one number per completion: expected 3. Received: {count}"
    )


@pytest.mark.parametrize("kind", [list, np.array, tensor, pd.Series, lambda values: [[v] for v in values]])
@pytest.mark.parametrize("row", [0, 2])
def test_an_answer_that_is_not_a_number_is_shown_with_its_text(kind, row):
    class Judge(Length):
        def __call__(self, prompts, completions, **columns):
            return kind([float("nan") if i == row else 1.0 for i in range(3)])

    with pytest.raises(RewardError) as error:
        call(Judge())
    assert str(error.value) == (
        "The `reward` function `Judge` must return numbers, or `None` where it has none to give. Received: nan for the "
        f"completion {COMPLETIONS[row]!r} of the prompt {PROMPTS[row]!r}"
    )


@pytest.mark.parametrize("kind", [list, iter, np.array, lambda v: [[x] for x in v], lambda v: pd.Series(v, dtype=object)])
def test_none_abstains(kind):
    np.testing.assert_array_equal(call(lambda completions: kind([1.0, None, 2.0])), [1.0, float("nan"), 2.0])
    np.testing.assert_array_equal(call(lambda completions: kind([None] * 3)), [float("nan")] * 3)


def test_infinity_has_its_place_in_the_order():
    infinity = float("inf")
    assert call(lambda completions: [-infinity, 0.0, infinity]).tolist() == [-infinity, 0.0, infinity]


# Functions that were written for TRL's GRPO, as they are.


def shorter(completions, **kwargs):
    return [-float(len(completion)) for completion in completions]


def new_tokens(prompts, completions, completion_ids, **kwargs):
    assert len(prompts) == len(completions) == len(completion_ids)
    return [len(set(ids)) / len(ids) for ids in completion_ids]


def matches(completions, ground_truth, **kwargs):
    rewards = []
    for completion, truth in zip(completions, ground_truth, strict=True):
        found = re.search(r"<answer>(.*)</answer>", completion)
        rewards.append(float(found[1] == truth) if found else None)
    return rewards


def test_rewards_of_trl_run_unchanged():
    completions = ["<answer>4</answer>", " <answer>5</answer>", "six"]
    columns, ids = {"ground_truth": ["4", "6", "six"], "level": [1, 2, 3]}, [[4, 5, 4, 1], [5, 1], [6]]
    ours = [call_reward(reward, PROMPTS, completions, columns, ids).tolist() for reward in (shorter, new_tokens, matches)]
    np.testing.assert_array_equal(ours, [[-18.0, -19.0, -3.0], [0.75, 1.0, 1.0], [1.0, 0.0, float("nan")]])


# Rewards that wait.


async def later(prompts, completions):
    await asyncio.sleep(0)
    return length(prompts, completions)


class Later(Reward):
    async def __call__(self, prompts, completions, **columns):
        return await later(prompts, completions)


async def one_later(prompt, completion):
    await asyncio.sleep(0)
    return length([prompt], [completion])[0]


class Custom:
    def __await__(self):
        return later(PROMPTS, COMPLETIONS).__await__()


async def list_of_awaitables(prompts, completions):
    return [one_later(*pair) for pair in zip(prompts, completions, strict=True)]


AWAITED = {
    "function": later,
    "Reward": Later(),
    "partial": functools.partial(later),
    "returns a coroutine": lambda prompts, completions: later(prompts, completions),
    "returns an awaitable": lambda prompts, completions: Custom(),
    "a coroutine each": lambda prompts, completions: [one_later(*pair) for pair in zip(prompts, completions, strict=True)],
    "a coroutine each, in a generator": lambda prompts, completions: map(one_later, prompts, completions),
    "waits for a list of coroutines": list_of_awaitables,
}


@pytest.mark.parametrize("reward", AWAITED.values(), ids=AWAITED)
def test_what_can_be_awaited_is(reward):
    np.testing.assert_allclose(call(reward), [3.2, 3.3, 5.4], rtol=1e-6)


def test_it_is_awaited_where_a_loop_runs_already():
    async def in_a_notebook():
        return call(later)

    np.testing.assert_allclose(asyncio.run(in_a_notebook()), [3.2, 3.3, 5.4], rtol=1e-6)


def test_all_batches_wait_in_one_loop():
    """A client keeps its connections only there."""
    loops = []

    async def judge(completions):
        loops.append(asyncio.get_running_loop())
        return [0.0] * 3

    call(judge)
    asyncio.run(asyncio.to_thread(call, judge))
    assert loops[0] is loops[1]


def test_some_wait_at_the_same_time():
    both = asyncio.Barrier(2)

    async def meets():
        await asyncio.wait_for(both.wait(), 10)
        return 1.0

    assert call(lambda completions: [meets(), 2.0, meets()]).tolist() == [1.0, 2.0, 1.0]


def test_a_reward_that_raises_while_it_is_awaited():
    async def judge(prompts, completions):
        await asyncio.sleep(0)
        raise ConnectionError("the judge is away")

    with pytest.raises(RewardError, match=r"^The `reward` function `judge` raised ConnectionError: the judge is away It"):
        call(judge)


def test_reward_is_abstract_and_has_an_empty_config():
    with pytest.raises(TypeError, match="abstract"):
        Reward()
    assert Length().get_config() == {}
    assert isinstance(Length.from_config({}), Length)


def test_vader_tells_praise_from_blame():
    completions = [" a great success.", " a terrible loss.", " the table of the house.", "", " a GREAT success."]
    good, bad, neutral, nothing, shout = call_reward(VaderSentiment(), ["It was"] * 5, completions, {"topic": ["x"] * 5})
    assert 1 >= shout > good > 0 > bad >= -1
    assert neutral == nothing == 0


def test_vader_scores_the_completion_alone():
    ours = call_reward(VaderSentiment(), ["A horrible, terrible war", "A great joy"], [" was fine.", " was fine."], {})
    assert ours[0] == ours[1] > 0


def test_without_vader_its_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(ImportError, match=r"`vaderSentiment`: pip install 'keras-bond\[experiments\]'$"):
        VaderSentiment()


def test_vader_survives_serialisation():
    config = keras.saving.serialize_keras_object(VaderSentiment())
    assert config["registered_name"] == "keras_bond>VaderSentiment"
    twin = keras.saving.deserialize_keras_object(config)
    assert type(twin) is VaderSentiment
    assert twin(["It was"], [" a great success."]) == VaderSentiment()(["It was"], [" a great success."])
