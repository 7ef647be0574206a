"""What a reward is, and the one place where its answer is checked."""

import abc
import inspect

import numpy as np


class RewardError(RuntimeError):
    """A reward raised, or returned something that is not one finite number per completion."""


class Reward(abc.ABC):
    """A reward with a name and a config; any callable `f(prompts, completions, **columns)` will do as well.

    Subclass it to make a trainer with this reward serialisable (with `keras.saving.register_keras_serializable`).
    """

    @abc.abstractmethod
    def __call__(self, prompts, completions, **columns):
        """One number per completion.

        Args:
            prompts: list of B str.
            completions: list of B str, without the prompt.
            **columns: lists of length B, the further columns of the prompts' table.

        Returns:
            B finite floats; only their order matters to BOND.
        """

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def check_reward(reward):
    """Raises ValueError if `reward` is not callable."""
    if not callable(reward):
        raise ValueError(
            "`reward` must be a callable `f(prompts, completions, **columns)` that returns one number per completion, or a "
            f"`keras_bond.rewards.Reward`. Received: reward={reward!r}"
        )


def call_reward(reward, prompts, completions, columns):
    """`reward(prompts, completions, **columns)` as a (B,) float32 array, checked.

    A function that declares neither `**columns` nor a column's name is called without that column.

    Raises:
        RewardError: if the reward raised, or returned the wrong number of values, something that is not a number, NaN
            or infinity. The message names the offending completion.
    """
    name = getattr(reward, "__name__", type(reward).__name__)
    try:
        parameters = list(inspect.signature(reward).parameters.values())
    except (TypeError, ValueError):  # a callable written in C may not tell
        parameters = []
    if parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        accepted = {p.name for p in parameters}
        columns = {key: value for key, value in columns.items() if key in accepted}
    try:
        answer = reward(list(prompts), list(completions), **columns)
        answer = list(answer) if inspect.isgenerator(answer) else answer
    except Exception as error:
        raise RewardError(
            f"The `reward` function `{name}` raised {type(error).__name__}: {error} "
            f"It was given {len(completions)} completions, the first for the prompt {prompts[0]!r}. "
            "The policy is as it was after the last step."
        ) from error
    try:
        values = np.asarray([float(v) for v in answer], "float32")
    except (TypeError, ValueError) as error:
        raise RewardError(
            f"The `reward` function `{name}` must return one number per completion. Received: {answer!r:.200}"
        ) from error
    if len(values) != len(completions):
        raise RewardError(
            f"The `reward` function `{name}` must return one number per completion: expected {len(completions)}. "
            f"Received: {len(values)}"
        )
    if not np.isfinite(values).all():
        worst = int(np.flatnonzero(~np.isfinite(values))[0])
        raise RewardError(
            f"The `reward` function `{name}` must return finite numbers. Received: {values[worst]} for the completion "
            f"{completions[worst]!r} of the prompt {prompts[worst]!r}"
        )
    return values
