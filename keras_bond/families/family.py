"""What a family says: how a causal language model reads tokens and tells the logits of those that follow."""

from keras import ops


class Family:
    """How a `CausalLM` is run: whole sequences for scoring and the update, some columns at a time with a cache for sampling.

    A subclass implements the methods below. Its arrays have one row for each sequence, in the first axis.

    Args:
        causal_lm: a KerasHub `CausalLM`.
    """

    name = ""
    """What `families.of` and error messages call it."""
    pads_left = True
    """Whether prompts stand at the right of their columns, padding before them, so that all completions start in one column.
    If not, they start in column 0, and sampling reads longer prompts while it already draws for shorter ones."""
    reads_ahead = True
    """Whether `read` may be given tokens that are read again later: whether a cache has a column for each token."""
    longest = None
    """The most tokens of prompt and completion together; `None` where there is no limit."""

    def __init__(self, causal_lm):
        self.causal_lm = causal_lm
        self.backbone = causal_lm.backbone

    def new_cache(self, rows, columns):
        """A cache without tokens: a list of tuples of arrays, each with `rows` in its first axis."""
        raise NotImplementedError

    def widen(self, cache, more):
        """Give every array of `cache` `more` columns, one after another: so that never all are in memory twice."""
        raise NotImplementedError

    def read(self, token_ids, mask):
        """The cache of tokens (R, q), q >= 0, in the first columns; `mask` (R, q) is 1 where there are some."""
        raise NotImplementedError

    def step(self, token, cache, column, mask):
        """What follows one more token of each row.

        Args:
            token: (R,) int32.
            cache: of S columns.
            column: int32 scalar: where the token stands.
            mask: (R, S), 1 in the columns that hold tokens, or will.

        Returns:
            (logits, cache): (R, V), and the cache with the token in its column.
        """
        raise NotImplementedError

    def hidden(self, prompt_ids, prompt_mask, completion_ids):
        """The last hidden state before each token of completions, differentiable.

        Args:
            prompt_ids, prompt_mask: (B, P), padded on the left.
            completion_ids: (B S, T), the S completions of a prompt next to each other.

        Returns:
            (B S, T, D).
        """
        raise NotImplementedError

    def hidden_by_groups(self, prompts, completions):
        """As `hidden`, of prompts and completions in groups of like length: each is as wide as its longest row.

        Args:
            prompts: sequence of (ids (b, P'), mask (b, P')), padded on the left.
            completions: sequence of (owner (r,), ids (r, T'), ...): `owner` is the place of each one's prompt among those
                of all groups, one group after another.

        Returns:
            A list of (r, T', D).
        """
        raise NotImplementedError

    def logits(self, hidden):
        """(..., V): the logits of the token that follows each hidden state (..., D)."""
        return self.embedding(hidden, reverse=True)

    @property
    def embedding(self):
        """The layer of the vocabulary."""
        return self.backbone.token_embedding

    @property
    def vocabulary_size(self):
        """V, the number of logits."""
        return self.causal_lm.output.shape[-1]


def widened(array, more, value=0, axis=1):
    """`array` with `more` columns of `value` at the end of `axis`.

    >>> widened(ops.ones((1, 1)), 2).tolist()
    [[1.0, 0.0, 0.0]]
    """
    widths = [(0, more if i == axis else 0) for i in range(len(array.shape))]
    return ops.pad(array, widths, constant_values=value)


def to_the_left(rows, mask, width=None):
    """Rows (R, P) that are padded on the left, moved to column 0, of `width` columns; and their lengths (R,).

    What stands behind a row's end is its last token.

    >>> [x.tolist() for x in to_the_left(ops.array([[0, 0, 7, 8], [3, 4, 5, 6]]), ops.array([[0, 0, 1, 1], [1, 1, 1, 1]]))]
    [[[7, 8, 8, 8], [3, 4, 5, 6]], [2, 4]]
    """
    lengths, columns = ops.sum(ops.cast(mask, "int32"), axis=1), rows.shape[1]
    places = ops.expand_dims(columns - lengths, 1) + ops.arange(width or columns, dtype="int32")
    places = ops.cast(ops.minimum(places, columns - 1), "int32")  # whatever floatx is
    return ops.take_along_axis(rows, places, axis=1), lengths


def joined_on_the_left(rows):
    """(b, q) arrays of several widths as one array, padded on the left.

    >>> joined_on_the_left([ops.array([[7]]), ops.array([[5, 6]])]).tolist()
    [[0, 7], [5, 6]]
    """
    width = max(of.shape[1] for of in rows)
    return ops.concatenate([ops.pad(of, [(0, 0), (width - of.shape[1], 0)]) for of in rows], axis=0)
