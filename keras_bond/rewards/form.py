"""How a reward is called: everything by its name, to whoever takes it."""

import inspect
import itertools

TEXTS = ("prompts", "completions")
GIVEN = (*TEXTS, "completion_ids")
"""What a reward can ask for beside the columns of the prompts' table."""

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def call_form(reward, names):
    """How `reward` is called where `names` are there: what it gets by position, and what by keyword.

    A parameter gets what it is named after, and `**kwargs` all that is left. The first two parameters are prompts and
    completions in any case, as far as they have names of their own. A default stays where nothing has its name.

    Args:
        reward: any callable.
        names: of `GIVEN`, and of the columns.

    Returns:
        (list of names, dict from keyword to name).

    Raises:
        ValueError: if a parameter needs what is not there, or none takes the completions; the message names it.

    Example:

    >>> call_form(lambda completions, answer, **kwargs: ..., ["prompts", "completions", "answer"])
    ([], {'completions': 'completions', 'answer': 'answer', 'prompts': 'prompts'})
    >>> call_form(lambda x, y: ..., ["prompts", "completions", "answer"])
    (['prompts', 'completions'], {})
    """
    parameters = _parameters(reward)
    if parameters is None:  # written in C: it does not tell
        return [*TEXTS], {name: name for name in names if name not in GIVEN}
    variadic = {p.kind for p in parameters if p.kind in _VARIADIC}
    named = {p.name: p for p in parameters if p.kind not in _VARIADIC}
    takes = {name: name for name in named if name in names}
    needs = [name for name, p in named.items() if name not in takes and p.default is p.empty]

    places = [name for name, p in named.items() if p.kind is not p.KEYWORD_ONLY]
    places += ["*0", "*1"] if variadic == {inspect.Parameter.VAR_POSITIONAL} else []
    first, left = places[:2], [text for text in TEXTS if text not in takes]
    unknown = [name for name in first if name in needs or name not in named]
    other_names = len(first) == 2 and first[0] != "completions" and {*first} <= {*unknown, *TEXTS}
    if other_names and len(unknown) == len(left):
        takes |= zip(unknown, left, strict=True)

    keywords = inspect.Parameter.VAR_KEYWORD in variadic
    columns = [name for name in first if name in takes and takes[name] not in GIVEN]
    in_keywords = keywords and {*first[1:]}.isdisjoint(columns)  # or the second parameter may be meant for them
    if not in_keywords and {"completions", "completion_ids"}.isdisjoint(takes.values()):
        raise ValueError(
            "`reward` must take the completions: call a parameter `completions`. "
            f"Received: {_described(reward, parameters)}"
            + "".join(f", whose parameter `{name}` takes the column `{name}`" for name in columns)
        )
    missing = [name for name in needs if name not in takes]
    if missing:
        raise ValueError(
            f"`reward` may ask for {', '.join(f'`{name}`' for name in names)}, columns included: rename its other "
            f"parameters, or give them defaults. Received: {_described(reward, parameters)}, which needs `{missing[0]}`"
        )

    in_order = 2 if [takes.get(name) for name in first] == [*TEXTS] else 0
    count = max(in_order, sum(p.kind is p.POSITIONAL_ONLY for p in parameters))
    by_position = [*itertools.takewhile(takes.__contains__, places[:count])]
    by_keyword = {name: source for name, source in takes.items() if name not in by_position}
    if keywords:
        by_keyword |= {name: name for name in names if name not in takes.values()}
    return [takes[name] for name in by_position], by_keyword


def name_of(reward):
    return getattr(reward, "__name__", type(reward).__name__)


def _parameters(reward):
    """Of `reward`, or where it only passes on what it gets, as a Torch module and a Keras layer do, of what gets it."""
    inner = [getattr(reward, name) for name in ("forward", "call") if hasattr(reward, name)]
    try:
        found = [[*inspect.signature(each).parameters.values()] for each in (reward, *inner)]
    except (TypeError, ValueError):
        return None
    return next((each for each in found if any(p.kind not in _VARIADIC for p in each)), found[0])


def _described(reward, parameters):
    return f"`{name_of(reward)}{inspect.Signature(parameters)!s:.200}`"
