import functools

import keras
import numpy as np
import pytest

from keras_bond.rewards import Reward, RewardError, VaderSentiment, call_reward

PROMPTS, COMPLETIONS = ["One", "Two", "Three"], [" a", " bb", " ccc"]
COLUMNS = {"weight": [2.0, 3.0, 4.0], "topic": ["x", "y", "z"]}


def call(reward, columns=COLUMNS):
    return call_reward(reward, PROMPTS, COMPLETIONS, columns)


def length(prompts, completions):
    return [len(p) + len(c) / 10 for p, c in zip(prompts, completions, strict=True)]


class Length(Reward):
    def __call__(self, prompts, completions, **columns):
        return length(prompts, completions)


@pytest.mark.parametrize("kind", [list, tuple, np.array, keras.ops.convert_to_tensor, iter])
def test_answer_becomes_float32(kind):
    ours = call(lambda prompts, completions: kind(length(prompts, completions)))
    assert ours.dtype == "float32"
    np.testing.assert_allclose(ours, [3.2, 3.3, 5.4], rtol=1e-6)


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


def test_a_missing_column_is_named():
    def judge(prompts, completions, answer):
        return [0, 0, 0]

    with pytest.raises(RewardError, match=r"`judge` raised TypeError: .*missing 1 required positional argument: 'answer'"):
        call(judge)


@pytest.mark.parametrize(
    ("answer", "received"),
    [
        (["good", "bad", "good"], "['good', 'bad', 'good']"),
        ([1.0, None, 2.0], "[1.0, None, 2.0]"),
        (None, "None"),
        (3.0, "3.0"),
        ([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], "[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]"),
        (["x" * 500] * 3, "['" + "x" * 198),
    ],
    ids=["strings", "None within", "None", "scalar", "pairs", "long"],
)
def test_an_answer_that_is_not_numbers(answer, received):
    def judge(prompts, completions):
        return answer

    with pytest.raises(RewardError) as error:
        call(judge)
    assert str(error.value) == f"The `reward` function `judge` must return one number per completion. Received: {received}"


@pytest.mark.parametrize("count", [0, 2, 4])
def test_an_answer_of_the_wrong_length(count):
    with pytest.raises(RewardError) as error:
        call(lambda prompts, completions: [1.0] * count)
    assert str(error.value) == (
        f"The `reward` function `<lambda>` must return one number per completion: expected 3. Received: {count}"
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("row", [0, 2])
def test_an_answer_that_is_not_finite(value, row):
    class Judge(Length):
        def __call__(self, prompts, completions, **columns):
            return [value if i == row else 1.0 for i in range(3)]

    with pytest.raises(RewardError) as error:
        call(Judge())
    assert str(error.value) == (
        f"The `reward` function `Judge` must return finite numbers. Received: {value} for the completion "
        f"{COMPLETIONS[row]!r} of the prompt {PROMPTS[row]!r}"
    )


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


def test_vader_survives_serialisation():
    config = keras.saving.serialize_keras_object(VaderSentiment())
    assert config["registered_name"] == "keras_bond>VaderSentiment"
    twin = keras.saving.deserialize_keras_object(config)
    assert type(twin) is VaderSentiment
    assert twin(["It was"], [" a great success."]) == VaderSentiment()(["It was"], [" a great success."])
