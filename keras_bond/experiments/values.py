"""A parameter's value, and the text that a person types for it."""

import json

_CONSTANTS = {"True": True, "False": False, "None": None}  # as Python writes them; JSON's own are true, false and null


def read(text):
    """A value as it is typed: JSON, or a number, True, False or None as Python writes them, or else a str.

    >>> [read(text) for text in ("smoke", "3e-4", "08", "true", "None", "[1, 2]", '"1"', "2026_01_01")]
    ['smoke', 0.0003, 8, True, None, [1, 2], '1', '2026_01_01']
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    for parse in (json.loads, int, float) if "_" not in text else (json.loads,):
        try:
            return parse(text)
        except ValueError:
            pass
    return text


def text_of(value):
    """One line that `read` takes for this value, and for no other.

    >>> [text_of(value) for value in ("smoke", 0.0003, True, None, [1, "b"])]
    ['smoke', '0.0003', 'true', 'null', '[1, "b"]']
    >>> print(*map(text_of, ("1", "null", "", "two\\nlines")))
    "1" "null" "" "two\\nlines"
    """
    if isinstance(value, str) and value.isprintable() and value == value.strip() != "":
        typed = read(value)
        if isinstance(typed, str) and typed == value:
            return value
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)


def is_json(value):
    """Whether a value is None, a bool, a number, text, or a list or a dict of them: what a parameter can be set to.

    >>> is_json({"rates": [1, float("inf"), None]}), is_json((1, 2)), is_json({1: "a"})
    (True, False, False)
    """
    if isinstance(value, list):
        return all(map(is_json, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and is_json([*value, *value.values()])
    if isinstance(value, str):  # half of a surrogate pair has no UTF-8, so no file can hold it
        return not any("\ud800" <= character <= "\udfff" for character in value)
    return value is None or isinstance(value, int | float)


def json_of(value):
    """JSON text of a value that JSON has; else of its `repr`. A kernel is sent the source of this function.

    >>> [json_of(value) for value in (None, [1, "a"], (1, 2), float("inf"))]
    ['null', '[1, "a"]', '"(1, 2)"', '"inf"']
    """
    import json

    try:
        text = json.dumps(value, allow_nan=False)
        if json.loads(text) == value:
            return text
    except Exception:  # a TypeError and a ValueError of ours, and what a user's class may raise
        pass
    try:
        return json.dumps(repr(value))
    except Exception:
        return json.dumps(object.__repr__(value))
