"""Conversations: lists of messages, each a dict with a `role` and its `content`."""

from collections.abc import Mapping

import numpy as np

REPLY = "assistant"
"""The role of the model."""


def is_conversation(value):
    """Whether `value` is a conversation: a list, tuple or array of dicts that have roles.

    >>> is_conversation([{"role": "user", "content": "Why is the sky blue?"}])
    True
    >>> is_conversation(["Why is the sky blue?"])
    False
    """
    listed = isinstance(value, list | tuple) or getattr(value, "ndim", 0) == 1
    return listed and len(value) > 0 and all(isinstance(message, Mapping) and "role" in message for message in value)


def conversation(value, where=""):
    """The conversation as plain lists, dicts, text and numbers, without what is `None`, as Arrow fills up its rows.

    Parts of a content, `{"type": "text", "text": ...}`, become one text.

    Args:
        value: what `is_conversation` accepts.
        where: for the message of an error, such as `" at row 3"`.

    Returns:
        A list of dicts.

    Raises:
        ValueError: if a message has no role or no content of text; it names the message.

    Example:

    >>> conversation([{"role": "user", "content": [{"type": "text", "text": "Hello"}], "name": None}])
    [{'role': 'user', 'content': 'Hello'}]
    """
    messages = [_plain(message) for message in value]
    for message in messages:
        content = message.get("content", "" if message.get("tool_calls") else None)
        if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
            content = "".join(str(part.get("text", "")) for part in content)
        if not (isinstance(message["role"], str) and isinstance(content, str)):
            raise ValueError(
                "Every message of a conversation must have a `role` and a `content` that are text; models that see images "
                f"are not supported. Received{where}: {message!r:.200}"
            )
        message["content"] = content
    return messages


def asked(messages):
    """A conversation without the replies that it ends in: what a model is asked, where a table holds both.

    >>> asked([{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}])
    [{'role': 'user', 'content': '2 + 2?'}]
    """
    messages = [*messages]
    while messages and messages[-1].get("role") == REPLY:
        messages.pop()
    return messages


def _plain(value):
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode()
    return value if value is None or type(value) in (str, int, float, bool) else str(value)
