"""The few widths and numbers of rows that programs are compiled for, so that cost follows the tokens."""

FIRST_SEGMENT = 32
"""Tokens of a completion before the host looks how many rows are unfinished; no more is a budget of one program."""


def bucket(length, budget):
    """The width that completions of up to `length` tokens are cut to: 8, 12, 16, 24, 32, 48, ..., at most `budget`.

    >>> [bucket(length, 100) for length in (0, 9, 25, 32, 65, 97)]
    [8, 12, 32, 32, 96, 100]
    """
    power = 1 << (max(length, 7) - 1).bit_length()
    return min(3 * power // 4 if 8 < 3 * power // 4 >= length else power, budget)


def segments(budget):
    """The widths that completions grow to, one after another: 32, 64, 128, ..., `budget`, the last at least a third more.

    >>> segments(24), segments(64), segments(1000)
    ([24], [32, 64], [32, 64, 128, 256, 512, 1000])
    """
    widths = [FIRST_SEGMENT << i for i in range(max(budget // FIRST_SEGMENT, 1).bit_length())]
    return [*(width for width in widths if 4 * width <= 3 * budget), budget]


def row_sizes(rows, fewest):
    """The numbers of rows that a batch shrinks to as rows stop: powers of four, the first at most half; at last 0.

    >>> row_sizes(192, 4), row_sizes(192, 64), row_sizes(7, 4)
    ([192, 64, 16, 4, 0], [192, 64, 0], [7, 0])
    """
    powers = [4**i for i in reversed(range(rows.bit_length()))]
    return [rows, *(power for power in powers if fewest <= power <= rows / 2), 0]
