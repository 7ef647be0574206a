"""Rows of like length are scored and trained together: cost follows the tokens, not the longest row."""

from typing import Any, NamedTuple

import numpy as np

from keras_bond.rollout.devices import batch_devices

FEWEST_POSITIONS = 2**13
"""Positions of a batch below which it stays whole: more programs would cost more than they save."""
GAIN = 0.8
"""A batch is put in groups where they have at most this share of its positions."""
PROMPT_CUTS = ((3, 4),)
COMPLETION_CUTS = ((1, 2), (7, 8))
"""Where the prompts and the completions of a batch, sorted by length, are cut."""


class Prompts(NamedTuple):
    """Some prompts of like length."""

    ids: Any
    """(b, P') int32, left-padded."""
    mask: Any
    """(b, P') int32."""


class Followed(NamedTuple):
    """Some completions of like length."""

    owner: Any
    """(r,) int32: the prompt of each, its place among all of the groups' prompts, one group after another."""
    ids: Any
    """(r, T') int32."""
    mask: Any
    """(r, T') bool."""


class Groups(NamedTuple):
    """B prompts and B S completions in groups of like length, and how to bring them in the batch's order again."""

    prompts: tuple
    completions: tuple
    places: Any
    """(B S,) int32: where each completion of the batch stands among those of the groups."""


def group(prompt_ids, prompt_mask, token_ids, mask):
    """The groups of like length that a batch is best scored in; `None` where it is best left whole.

    Prompts are cut in two groups, the longest quarter apart; completions in three, the longer half and the longest eighth
    apart. A group is as wide as its longest row, rounded up to a power of two: so many a shape, for each of which a program
    is compiled. The same batch has the same groups, whatever came before it. A batch that is spread over several devices
    stays whole: what its longest rows cost is lost there.

    Args:
        prompt_ids, prompt_mask: (B, P) arrays, left-padded.
        token_ids, mask: (B, S, T) arrays: S completions for each prompt.

    Returns:
        `Groups`, or `None`.
    """
    prompt_ids, prompt_mask, token_ids, mask = map(np.asarray, (prompt_ids, prompt_mask, token_ids, mask))
    count, samples, width = token_ids.shape
    positions = prompt_ids.size + token_ids.size
    if batch_devices()[1] is not None or positions < FEWEST_POSITIONS:
        return None
    flat_ids, flat_mask = (rows.reshape(-1, width) for rows in (token_ids, mask))
    of_prompts = _cut(prompt_mask.sum(axis=1), PROMPT_CUTS, prompt_ids.shape[1])
    of_completions = _cut(flat_mask.sum(axis=1), COMPLETION_CUTS, width)
    if sum(len(rows) * wide for rows, wide in of_prompts + of_completions) > GAIN * positions:
        return None
    place = np.empty(count, "int32")
    place[np.concatenate([rows for rows, _ in of_prompts])] = np.arange(count)
    prompts = (Prompts(prompt_ids[rows, -wide:], prompt_mask[rows, -wide:]) for rows, wide in of_prompts)
    completions = (Followed(place[rows // samples], flat_ids[rows, :w], flat_mask[rows, :w]) for rows, w in of_completions)
    places = np.argsort(np.concatenate([rows for rows, _ in of_completions])).astype("int32")
    return Groups(tuple(prompts), tuple(completions), places)


def _cut(lengths, cuts, widest):
    """[(rows, width)]: the rows by length, cut where `cuts` say, groups of one width in one."""
    order = np.argsort(lengths, kind="stable")
    found: dict[int, list] = {}
    for rows in np.split(order, [len(order) * a // b for a, b in cuts]):
        if len(rows):
            width = min(max(8, 1 << (int(lengths[rows].max()) - 1).bit_length()), widest)
            found.setdefault(width, []).append(rows)
    return [(np.concatenate(rows), width) for width, rows in found.items()]
