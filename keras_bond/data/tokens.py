"""Text to token ids."""

import re

import numpy as np

UNKNOWN = "<unk>"
"""A special token of SentencePiece, which KerasHub does not list among a tokenizer's own."""


def encode(tokenizer, texts, markers=()):
    """Token ids of each text, start token first: `tokenize`, and a start token where the text does not begin with one.

    Args:
        tokenizer: a KerasHub tokenizer. Where it has no start token, none is added.
        texts: a list of str.
        markers: see `tokenize`.

    Returns:
        A list of lists of int.

    Raises:
        ValueError: see `tokenize`.

    Example:

    ```python
    encode(tokenizer, ["We will", "<bos>We will"])  # [[2, 278, 125], [2, 278, 125]]
    ```
    """
    start = getattr(tokenizer, "start_token_id", None)
    rows = tokenize(tokenizer, texts, markers)
    return rows if start is None else [row if row[:1] == [start] else [start, *row] for row in rows]


def tokenize(tokenizer, texts, markers=()):
    """Token ids of each text, where the spelling of a special token stands for that token.

    Special are the tokens in `tokenizer.special_tokens`, and `<unk>`. A chat template writes them: `"<bos>We will"` is the
    token 2 and the tokens of `"We will"`. As for every tokenizer of chat models, a text that only quotes `"<eos>"` has
    the token too: take the spelling out of text that is not yours. All texts together are one call of the tokenizer.

    Args:
        tokenizer: a KerasHub tokenizer.
        texts: a list of str.
        markers: spellings that are special as well, where the vocabulary has them: those of a chat template.

    Returns:
        A list of lists of int.

    Raises:
        ValueError: if a text is not valid Unicode; it names the row.

    Example:

    ```python
    tokenize(tokenizer, ["We will", "We<eos> will"])  # [[278, 125], [278, 1, 125]]
    ```
    """
    for i, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                "A text must be valid Unicode, which has no half of a surrogate pair: read it with the encoding that it was "
                f"written in. Received at row {i}, character {error.start}: {text!r:.200}"
            ) from error
    special = {token: token_id(tokenizer, token) for token in {*tokenizer.special_tokens, UNKNOWN, *markers}}
    spellings = [re.escape(token) for token in sorted(special, key=len, reverse=True) if special[token] is not None]
    split = re.compile(f"({'|'.join(spellings)})").split if spellings else lambda text: [text]
    rows = [split(text) for text in texts]  # plain text and special tokens in turns, plain text first and last
    plain = iter(_call(tokenizer, [part for row in rows for part in row[::2] if part]))
    return [
        [token for i, part in enumerate(row) if part for token in ([special[part]] if i % 2 else next(plain))]
        for row in rows
    ]


def token_id(tokenizer, token):
    """The id of `token`, a str; `None` where the vocabulary lacks it."""
    try:
        found = tokenizer.token_to_id(token)
        return found if tokenizer.id_to_token(found) == token else None  # SentencePiece answers with the unknown token
    except (KeyError, ValueError):  # as other tokenizers do
        return None


def _call(tokenizer, texts):
    rows = tokenizer(texts) if texts else []
    return rows.to_list() if hasattr(rows, "to_list") else [np.asarray(row).tolist() for row in rows]
