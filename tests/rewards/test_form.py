"""Who gets what: functions of every shape, each called with values that are known by name."""

import functools

import keras
import pytest

from keras_bond.rewards.form import GIVEN, call_form

NAMES = [*GIVEN, "answer", "topic"]


def called(function, names=NAMES):
    """`function` called with each name as its own value."""
    by_position, by_keyword = call_form(function, names)
    return function(*by_position, **by_keyword)


def wrapped(function):
    @functools.wraps(function)
    def outer(*arguments, **named):
        return function(*arguments, **named)

    return outer


def wrapped_by_position(function):
    @functools.wraps(function)
    def outer(*arguments):
        return function(*arguments)

    return outer


def opaque(function):
    return lambda *arguments, **named: function(*arguments, **named)


class Judge:
    def __call__(self, completions, prompts):
        return prompts, completions

    def method(self, xs, ys):
        return xs, ys

    @staticmethod
    def static(xs, ys):
        return xs, ys


def bound(p, c, scale):
    return p, c, scale


BOTH = {
    "names": lambda prompts, completions: (prompts, completions),
    "names in another order": lambda completions, prompts: (prompts, completions),
    "names in another order, by position": lambda completions, prompts, /: (prompts, completions),
    "after a column": lambda answer, completions, prompts: (prompts, completions) if answer == "answer" else None,
    "keywords alone": lambda *, completions, prompts: (prompts, completions),
    "other names": lambda xs, ys: (xs, ys),
    "other names by position": lambda xs, ys, /: (xs, ys),
    "other names and columns": lambda xs, ys, *, answer: (xs, ys) if answer == "answer" else None,
    "other names and defaults": lambda xs, ys, scale=1, *, more=2: (xs, ys) if (scale, more) == (1, 2) else None,
    "other names and all": lambda xs, ys, **k: (xs, ys) if sorted(k) == ["answer", "completion_ids", "topic"] else None,
    "the first has another name": lambda xs, completions: (xs, completions),
    "the second has another name": lambda prompts, ys: (prompts, ys),
    "the name of prompts alone, second": lambda ys, prompts: (prompts, ys),
    "all by position": lambda *texts: texts,
    "one, then all by position": lambda xs, *rest: (xs, *rest),
    "a partial": functools.partial(bound, scale=3),
    "an object": Judge(),
    "a method": Judge().method,
    "a static method": Judge.static,
    "wrapped": wrapped(lambda xs, ys: (xs, ys)),
    "wrapped, in another order": wrapped(lambda completions, prompts: (prompts, completions)),
    "wrapped by position": wrapped_by_position(lambda prompts, completions: (prompts, completions)),
    "passed on": opaque(lambda completions, prompts, **named: (prompts, completions)),
}


@pytest.mark.parametrize("function", BOTH.values(), ids=BOTH)
def test_prompts_and_completions_find_their_parameters(function):
    assert called(function)[:2] == ("prompts", "completions")


NAMED = {
    "completions alone": (lambda completions: {"completions": completions}, {"completions"}),
    "tokens alone": (lambda completion_ids: {"completion_ids": completion_ids}, {"completion_ids"}),
    "a column": (lambda completions, answer: {"completions": completions, "answer": answer}, {"completions", "answer"}),
    "a column, then completions": (lambda answer, completions: {"answer": answer, "completions": completions}, None),
    "a default that a column has": (lambda completions, answer=0: {"completions": completions, "answer": answer}, None),
    "everything": (lambda **named: named, {*NAMES}),
    "completions and everything": (lambda completions, **named: {"completions": completions, **named}, {*NAMES}),
    "prompts, tokens and everything": (lambda prompts, completion_ids, **k: {"prompts": prompts, **k}, None),
    "wrapped": (wrapped(lambda completions, **named: {"completions": completions, **named}), {*NAMES}),
    "passed on": (opaque(lambda completions, **named: {"completions": completions, **named}), {*NAMES}),
}


@pytest.mark.parametrize(("function", "names"), NAMED.values(), ids=NAMED)
def test_everything_goes_by_its_name(function, names):
    got = called(function)
    assert all(name == value for name, value in got.items())
    assert names is None or set(got) == names


def test_a_default_that_nothing_is_named_after_is_left_alone():
    assert called(lambda completions, scale=2.0, *, prompt="?": (completions, scale, prompt)) == ("completions", 2.0, "?")


def test_layers_and_modules_pass_on_what_their_own_method_asks_for():
    class Layer(keras.layers.Layer):
        def call(self, prompts, completions):
            return prompts, completions

    class Module:
        def __call__(self, *arguments, **named):
            return self.forward(*arguments, **named)

        def forward(self, completions, prompts):
            return prompts, completions

    assert call_form(Layer(), NAMES) == (["prompts", "completions"], {})
    assert called(Module()) == ("prompts", "completions")


def test_what_is_written_in_c_and_does_not_tell_is_called_by_position():
    assert call_form(max, NAMES) == (["prompts", "completions"], {"answer": "answer", "topic": "topic"})


@pytest.mark.parametrize(
    ("function", "received"),
    [
        (lambda xs: 0, "`<lambda>(xs)`"),
        (lambda prompts, scale=1: 0, "`<lambda>(prompts, scale=1)`"),
        (lambda: 0, "`<lambda>()`"),
        (len, "`len(obj, /)`"),
        (Judge, "`Judge()`"),  # the class, not an object of it
        (lambda prompts, answer: 0, "`<lambda>(prompts, answer)`, whose parameter `answer` takes the column `answer`"),
        (lambda xs, answer: 0, "`<lambda>(xs, answer)`, whose parameter `answer` takes the column `answer`"),
        (
            lambda prompts, answer, **columns: 0,
            "`<lambda>(prompts, answer, **columns)`, whose parameter `answer` takes the column `answer`",
        ),
    ],
)
def test_a_reward_that_does_not_take_the_completions_is_refused(function, received):
    with pytest.raises(ValueError) as error:
        call_form(function, NAMES)
    start = "`reward` must take the completions: call a parameter `completions`. Received: "
    assert str(error.value) == start + received


@pytest.mark.parametrize(
    ("function", "received"),
    [
        (lambda completions, truth: 0, "`<lambda>(completions, truth)`, which needs `truth`"),
        (lambda prompts, completions, truth: 0, "`<lambda>(prompts, completions, truth)`, which needs `truth`"),
        (lambda prompts, truth, completions: 0, "`<lambda>(prompts, truth, completions)`, which needs `truth`"),
        (lambda truth, prompts, completions: 0, "`<lambda>(truth, prompts, completions)`, which needs `truth`"),
        (lambda truth, topics, completions: 0, "`<lambda>(truth, topics, completions)`, which needs `truth`"),
        (lambda completions, *, truth: 0, "`<lambda>(completions, *, truth)`, which needs `truth`"),
        (lambda xs, **columns: 0, "`<lambda>(xs, **columns)`, which needs `xs`"),
        (lambda completions, state, **rest: 0, "`<lambda>(completions, state, **rest)`, which needs `state`"),
    ],
)
def test_a_parameter_that_nothing_is_named_after_is_refused(function, received):
    with pytest.raises(ValueError) as error:
        call_form(function, NAMES)
    assert str(error.value) == (
        "`reward` may ask for `prompts`, `completions`, `completion_ids`, `answer`, `topic`, columns included: rename its "
        f"other parameters, or give them defaults. Received: {received}"
    )
