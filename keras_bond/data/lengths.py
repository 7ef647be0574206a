"""Lengths: few widths for arrays of uneven rows, and prompts that are longer than there is room for."""

import numpy as np

LONG_PROMPTS = ("error", "cut", "drop")


def bucket(length, limit):
    """The width for rows of at most `length` tokens: the next of 8, 12, 16, 24, 32, 48, ..., within `limit`.

    A third of a row is padding at most, and there are 2 log2(limit / 8) + 2 widths: so many programs are compiled at most.

    >>> [bucket(length, 100) for length in (1, 9, 17, 49, 97)]
    [8, 12, 24, 64, 100]
    """
    power = 8
    while power < length:
        power *= 2
    return min(power * 3 // 4 if length <= power * 3 // 4 and power > 8 else power, limit)


def pad_left(rows, width, pad_id):
    """(ids, mask) of rows of token ids, each (B, width) int32: every row ends in the last column."""
    ids, mask = np.full((len(rows), width), pad_id, "int32"), np.zeros((len(rows), width), "int32")
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = row
        mask[i, width - len(row) :] = 1
    return ids, mask


class Fitting:
    """What becomes of prompts of more than `limit` tokens, and how many there were.

    Args:
        limit: tokens, start token included.
        long_prompts: `"error"`; `"cut"`: the tokens after the start token are cut on the left, so that the end of the
            prompt, which the completion goes on from, stays; `"drop"`: they are left out.

    Raises:
        ValueError: if `long_prompts` is none of these.
    """

    def __init__(self, limit, long_prompts="error"):
        if long_prompts not in LONG_PROMPTS:
            raise ValueError(f"`long_prompts` must be one of {', '.join(LONG_PROMPTS)}. Received: {long_prompts!r}")
        self.limit, self.long_prompts = limit, long_prompts
        self.seen = self.too_long = self.longest = 0

    def __call__(self, encoded, texts):
        """(rows that stay, their token ids): a list of places in `encoded`, and a list of lists of ids.

        Raises:
            ValueError: with `"error"`, if a prompt is too long. The message says how many, how long, and which comes first.
        """
        long = [i for i, ids in enumerate(encoded) if len(ids) > self.limit]
        first = self.seen + long[0] if long else None
        self.seen, self.too_long = self.seen + len(encoded), self.too_long + len(long)
        self.longest = max([self.longest, *(len(encoded[i]) for i in long)])
        if long and self.long_prompts == "error":
            which = f"Prompt {first} has {self.longest} tokens (start token included),"
            if len(long) > 1:
                which = f"{len(long)} of {len(encoded)} prompts have up to {self.longest} tokens (start token included),"
            raise ValueError(
                f"{which} more than `max_prompt_length`={self.limit}. Raise the limit, shorten them, or choose what becomes "
                'of them: `long_prompts="cut"` keeps their end, "drop" leaves them out. '
                f"Received{' first, at row ' + str(first) if len(long) > 1 else ''}: {texts[long[0]]!r:.200}"
            )
        if self.long_prompts == "drop":
            stays = [i for i in range(len(encoded)) if len(encoded[i]) <= self.limit]
            return stays, [encoded[i] for i in stays]
        return list(range(len(encoded))), [_cut(ids, self.limit) for ids in encoded]

    def report(self):
        """A sentence on what was cut or dropped; `None` where nothing was."""
        if not self.too_long:
            return None
        done = "their beginning was cut" if self.long_prompts == "cut" else "they were dropped"
        return (
            f"{self.too_long} of {self.seen} prompts had more tokens than `max_prompt_length`={self.limit}, the longest "
            f"{self.longest}: {done}."
        )


def _cut(ids, limit):
    return ids if len(ids) <= limit else [*ids[:1], *ids[len(ids) - limit + 1 :]]
