"""What a reward is, and the one place where it is called and its answer is checked."""

import abc
import asyncio
import functools
import inspect
import itertools
import math
import os
import threading
from collections.abc import Iterator, Mapping, Set

import numpy as np

from keras_bond.rewards.form import GIVEN, call_form, name_of


class RewardError(RuntimeError):
    """A reward raised, or returned something that is not one number per completion."""


class Reward(abc.ABC):
    """A reward with a name and a config; any callable will do as well.

    It is called by name: `prompts`, `completions`, `completion_ids` and the columns of the prompts' table go each to the
    parameter of this name, and to `**kwargs` go all that are left. So functions written for TRL's GRPO run as they are. Two
    first parameters with names of their own are prompts and completions, in this order. It may be an `async def`.

    Subclass it to make a trainer with this reward serialisable (with `keras.saving.register_keras_serializable`).
    """

    @abc.abstractmethod
    def __call__(self, prompts, completions, **columns):
        """One number per completion.

        Args:
            prompts: list of B str.
            completions: list of B str, without the prompt.
            **columns: lists of length B: the further columns of the prompts' table, and `completion_ids`, each completion's
                tokens up to and including its stop token, a list of int.

        Returns:
            B numbers, in a list, an iterator, an array or a tensor, (B,) or (B, 1). Only their order matters to BOND; they
            are compared in float64. `None` abstains: the sample counts nowhere, and its share is logged as `abstained`.
            Minus infinity is worse, infinity better than all else (their mean says no more; `Reinforce`, which uses values,
            refuses both). NaN is an error.
        """

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def check_reward(reward, columns=None):
    """Raises ValueError if `reward` cannot be called, or not with these columns, where their names are known."""
    if not callable(reward):
        raise ValueError(
            "`reward` must be a callable `f(prompts, completions, **columns)` that returns one number per completion, or a "
            f"`keras_bond.rewards.Reward`. Received: reward={reward!r}"
        )
    if columns is not None:
        for name in GIVEN:
            if name in columns:
                raise ValueError(f"A column may not be called `{name}`, a name that the reward is called with: rename it.")
        call_form(reward, [*GIVEN, *columns])


def call_reward(reward, prompts, completions, columns, completion_ids=None):
    """The rewards of B completions, checked: a (B,) float64 array, NaN where the reward abstained.

    Args:
        reward: any callable; see `Reward` for what it is given and what it may return.
        prompts, completions: B str each.
        columns: dict of lists of length B.
        completion_ids: B lists of int.

    Raises:
        ValueError: if the reward needs what is not there; see `check_reward`.
        RewardError: if the reward raised, or returned the wrong number of values, something that is not a number, or NaN.
            The message names the offending completion.
    """
    given = {"prompts": list(prompts), "completions": list(completions), "completion_ids": completion_ids, **columns}
    by_position, by_keyword = call_form(reward, [name for name, value in given.items() if value is not None])
    name, count = name_of(reward), len(completions)
    try:
        answer = reward(*(given[key] for key in by_position), **{key: given[source] for key, source in by_keyword.items()})
        answer = _wait(answer) if inspect.isawaitable(answer) else answer
        answer = [*itertools.islice(answer, count + 1)] if isinstance(answer, Iterator) else answer  # it may never end
        if isinstance(answer, list | tuple) and any(map(inspect.isawaitable, answer)):
            answer = _wait(_each(answer))
    except Exception as error:
        raise RewardError(
            f"The `reward` function `{name}` raised {type(error).__name__}: {error} "
            f"It was given {count} completions, the first for the prompt {prompts[0]!r}. "
            "The policy is as it was after the last step."
        ) from error
    try:
        numbers = [_number(value) for value in _values(answer)]
    except (TypeError, ValueError, OverflowError) as error:
        raise RewardError(
            f"The `reward` function `{name}` must return one number per completion, or `None` to abstain. "
            f"Received: {answer!r:.200}"
        ) from error
    if len(numbers) != count:
        raise RewardError(
            f"The `reward` function `{name}` must return one number per completion: expected {count}. "
            f"Received: {len(numbers)}"
        )
    for number, completion, prompt in zip(numbers, completions, prompts, strict=True):
        if number is not None and math.isnan(number):
            raise RewardError(
                f"The `reward` function `{name}` must return numbers, or `None` where it has none to give. "
                f"Received: nan for the completion {completion!r} of the prompt {prompt!r}"
            )
    return np.array(numbers, "float64")  # None becomes NaN


def _values(answer):
    """What may hold a number for each completion: a list, an array or a tensor."""
    if isinstance(answer, str | bytes | Mapping | Set):
        raise TypeError("characters, keys and what has no order are not a number per completion")
    return _plain(answer)


def _number(value):
    """A float of a number, or of what holds one alone: (B, 1) is (B,). None is none."""
    value = _plain(value)
    if isinstance(value, list | tuple):
        (value,) = value
    if isinstance(value, str | bytes):
        raise TypeError("text is not a number")
    return None if value is None else float(value)


def _plain(value):
    """Python's own lists and numbers of an array or a tensor of any library, wherever it lies; anything else as it is."""
    for method in ("to_numpy", "numpy"):  # a table of pandas, a tensor of TensorFlow
        if hasattr(value, method) and not hasattr(value, "tolist"):
            value = getattr(value, method)()
    return value.tolist() if hasattr(value, "tolist") else value


# Awaitables.


def _wait(awaitable):
    """What `awaitable` resolves to; Ctrl-C ends it."""

    async def resolved():
        return await awaitable

    future = asyncio.run_coroutine_threadsafe(resolved(), _loop(os.getpid()))
    try:
        return future.result()
    finally:
        future.cancel()


async def _each(answer):
    """`answer` with what its awaitables resolve to, all at once."""
    results = iter(await asyncio.gather(*filter(inspect.isawaitable, answer)))
    return [next(results) if inspect.isawaitable(value) else value for value in answer]


@functools.cache
def _loop(process):
    """The event loop of all rewards, in a thread of its own: a notebook's thread has a running one already, and a client
    that a reward keeps works from batch to batch in one loop alone."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="keras_bond rewards", daemon=True).start()
    return loop
