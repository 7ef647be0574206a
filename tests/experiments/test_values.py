"""A value as a person types it, shows it and finds it recorded."""

import json
import math

import numpy as np
import pytest

from keras_bond.experiments.values import is_json, json_of, read, text_of

pytestmark = pytest.mark.any_backend


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("smoke", "smoke"),
        ("3", 3),
        ("-1", -1),
        ("3e-4", 3e-4),
        (".5", 0.5),
        ("010", 10),
        ("true", True),
        ("False", False),
        ("null", None),
        ("None", None),
        ("no", "no"),
        ("12:30", "12:30"),
        ("2026_01_01", "2026_01_01"),
        ("[1, 2]", [1, 2]),
        ("-Infinity", -math.inf),
        ('"3"', "3"),
        ('"-p"', "-p"),
        ("$x_$", "$x_$"),
        ("", ""),
    ],
)
def test_values(text, expected):
    value = read(text)
    assert value == expected
    assert type(value) is type(expected)


VALUES = [
    *(None, "None", "null", True, "true", "True", 1, "1", 1.0, "1.0", -1e-3, math.inf, "inf", math.nan, "nan", 2**70),
    *("", " ", "a", "a ", "a b", "a  b", "a\nb", "a\\nb", '"', '"a"', "'", "$x_$", "\\", "{}", "<b>", "é", "\u202e", "\x00"),
    *([], "[]", [1, [None, "é"]], {"a": {"b": "\n"}}, {}, "x" * 300),
]


def test_what_is_shown_is_what_one_types():
    texts = [text_of(value) for value in VALUES]
    assert len(set(texts)) == len(VALUES)
    assert all(text.isprintable() and text for text in texts)
    for value, text in zip(VALUES, texts, strict=True):
        np.testing.assert_equal(read(text), value)
        assert type(read(text)) is type(value)


def test_what_json_does_not_have_is_recorded_by_its_repr():
    assert [json.loads(json_of(value)) for value in (None, True, 1.5, "é", [1, {"a": []}])] == [
        None,
        True,
        1.5,
        "é",
        [1, {"a": []}],
    ]
    others = {"inf": math.inf, "[nan]": [math.nan], "(1, 2)": (1, 2), "{1: 2}": {1: 2}, "np.float32(1.0)": np.float32(1)}
    others |= {"array([1., 2.])": np.array([1.0, 2.0]), "{3}": {3}, "b'a'": b"a"}
    assert {text: json.loads(json_of(value)) for text, value in others.items()} == {text: text for text in others}
    assert all(is_json(value) for value in VALUES)
    assert not any(is_json(value) for value in (*list(others.values())[2:], "\ud800", np.int64(3), range(2)))
