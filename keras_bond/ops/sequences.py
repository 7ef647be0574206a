"""Token and sequence log-probabilities, masks, and the choice of a token.

log pi(y|x) is the SUM of the log-probs of the completion's tokens at the sampling temperature: its stop token included,
nothing after it, no prompt token.
"""

import numpy as np
from keras import ops

from keras_bond._checks import check_at_least, check_positive, check_share
from keras_bond.ops._checks import as_float
from keras_bond.ops.chunks import smallest_divisor


def token_log_probs(logits, token_ids, temperature=1.0):
    """Log-probability of each token under softmax(logits / temperature), computed in float32.

    Args:
        logits: (..., V), where position t predicts `token_ids` at t.
        token_ids: (...), integers.
        temperature: > 0; the temperature the tokens were sampled at.

    Returns:
        (...), float32.

    Example:

    >>> round(float(token_log_probs([[0.0, 0.0]], [1])[0]), 4)
    -0.6931
    """
    logits = as_float(logits) / temperature
    chosen = ops.take_along_axis(logits, ops.expand_dims(ops.convert_to_tensor(token_ids), -1), axis=-1)
    return ops.squeeze(chosen, -1) - ops.logsumexp(logits, axis=-1)


def completion_mask(token_ids, stop_token_ids):
    """1 for every token up to and including the first stop token of a completion, 0 after it.

    Args:
        token_ids: (B, T), completions only: a stop token inside the prompt must not count.
        stop_token_ids: sequence of integers; all of them stop.

    Returns:
        (B, T), bool.

    Example:

    >>> completion_mask([[5, 1, 1], [5, 6, 7]], (1, 106)).tolist()
    [[True, True, False], [True, True, True]]
    """
    token_ids = ops.convert_to_tensor(token_ids)
    stops = ops.zeros(token_ids.shape, "int32")
    for stop in stop_token_ids:
        stops += ops.cast(ops.equal(token_ids, stop), "int32")
    return ops.equal(ops.cumsum(stops, axis=1) - stops, 0)


def sequence_log_prob(log_probs, mask):
    """log pi(y|x) = sum over the masked-in tokens: (..., T), (..., T) -> (...).

    Masked-out positions do not count even where they are infinite or not a number.

    >>> float(sequence_log_prob([[-1.0, -2.0, -9.0]], [[1, 1, 0]])[0])
    -3.0
    """
    return ops.sum(ops.where(ops.cast(mask, "bool"), as_float(log_probs), 0.0), axis=-1)


def token_kl(logits, reference_logits, temperature=1.0):
    """KL(pi || pi_ref) of the next token, exact: (..., V), (..., V) -> (...), in nats.

        sum_v pi(v) log(pi(v) / pi_ref(v)),    pi = softmax(logits / temperature)

    >>> round(float(token_kl([[0.0, 0.0]], [[0.0, 1.0]])[0]), 4)
    0.1201
    """
    log_p = ops.log_softmax(as_float(logits) / temperature)
    log_q = ops.log_softmax(as_float(reference_logits) / temperature)
    return ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)


def sequence_kl(logits, reference_logits, mask, temperature=1.0):
    """KL(pi || pi_ref) of whole completions, exact per token along completions sampled from pi.

        sum_t KL( pi(. | x, y_<t) || pi_ref(. | x, y_<t) )

    Its expectation over y ~ pi is the sequence KL (the chain rule), with far less variance than log pi(y) - log pi_ref(y).

    Args:
        logits: (B, T, V), of the policy.
        reference_logits: (B, T, V).
        mask: (B, T), 1 at the completion's tokens.
        temperature: > 0, divides both.

    Returns:
        (B,), in nats.

    Example:

    >>> float(sequence_kl([[[0.0, 0.0]]], [[[0.0, 0.0]]], [[1]])[0])
    0.0
    """
    return sequence_log_prob(token_kl(logits, reference_logits, temperature), mask)


def draw_tokens(logits, uniforms, temperature=1.0):
    """One token a row from softmax(logits / temperature), by inverting its distribution function.

        y = min{ v: sum_{w <= v} pi(w) > u }

    A pure function of its random numbers: the same uniforms draw the same tokens on every backend. Probabilities are
    resolved to about 1e-7, the granularity of a float32 uniform.

    Args:
        logits: (B, V).
        uniforms: (B,), in [0, 1).
        temperature: > 0.

    Returns:
        (token_ids, log_probs), each (B,): int32 and float32.

    Example:

    >>> tokens, _ = draw_tokens([[0.0, 0.0], [0.0, 0.0]], [0.4, 0.6])
    >>> tokens.tolist()
    [0, 1]
    """
    logits = as_float(logits) / temperature
    logits = logits - ops.max(logits, axis=-1, keepdims=True)
    weights = ops.exp(logits)
    batch_size, size = weights.shape
    block = smallest_divisor(size, size**0.5)  # two short searches, block then token, instead of a long one
    blocks = ops.reshape(weights, (batch_size, size // block, block))
    masses = ops.sum(blocks, axis=-1)
    total = ops.sum(masses, axis=-1)
    chosen, left = _first_above(masses, as_float(uniforms) * total)
    within, _ = _first_above(_pick(blocks, chosen), left)
    token_ids = chosen * block + within
    return token_ids, _pick(logits, token_ids) - ops.log(total)


def truncated_draw(top_k=0, top_p=1.0, min_p=0.0):
    """`draw_tokens` among the most probable tokens alone: a function that is called as `draw_tokens` is.

        y ~ pi(y) / pi(K),    K = { v: rank(v) < top_k,  pi(w more probable than v | rank < top_k) < top_p,
                                       pi(v) >= min_p max_w pi(w) }

    with pi = softmax(logits / temperature): the temperature comes first, then top-k, then top-p of what it leaves, as in
    `transformers`. A token as probable as the last one of K is in K too. The log-probabilities are those of the
    distribution that is drawn from.

    Args:
        top_k: tokens; 0 is all.
        top_p: in (0, 1], a probability; 1 is all.
        min_p: in [0, 1], a share of the greatest probability; 0 is all.

    Returns:
        `draw(logits (B, V), uniforms (B,), temperature=1.0) -> (token_ids (B,), log_probs (B,))`.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> tokens, log_probs = truncated_draw(top_k=1)([[0.0, 1.0], [1.0, 0.0]], [0.1, 0.9])
    >>> tokens.tolist(), log_probs.tolist()
    ([1, 0], [0.0, 0.0])

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration" (top-p).
    """
    check_at_least(0, top_k=top_k)
    check_positive(top_p=top_p)
    check_share(top_p=top_p, min_p=min_p)
    if (top_k, top_p, min_p) == (0, 1, 0):
        return draw_tokens

    def draw(logits, uniforms, temperature=1.0):
        logits = as_float(logits) / temperature
        ranked = -ops.sort(-logits, axis=-1)
        kept = ops.arange(ranked.shape[-1]) < (top_k or ranked.shape[-1])
        if top_p < 1:
            probabilities = ops.softmax(ops.where(kept, ranked, -np.inf))
            kept = ops.logical_and(kept, ops.cumsum(probabilities, axis=-1) - probabilities < top_p)
        if min_p > 0:
            kept = ops.logical_and(kept, ranked >= ranked[:, :1] + float(np.log(min_p)))
        least = ops.min(ops.where(kept, ranked, np.inf), axis=-1, keepdims=True)
        return draw_tokens(ops.where(logits < least, -np.inf, logits), uniforms)

    return draw


def greedy_tokens(logits, uniforms=None, temperature=1.0):
    """The most probable token a row; of several, the first. The temperature's limit 0 of `draw_tokens`, called likewise.

    Args:
        logits: (B, V).
        uniforms: not used.
        temperature: > 0; of the log-probabilities.

    Returns:
        (token_ids, log_probs), each (B,): int32 and float32.

    Example:

    >>> greedy_tokens([[0.0, 1.0, 1.0]])[0].tolist()
    [1]
    """
    token_ids = ops.cast(ops.argmax(as_float(logits), axis=-1), "int32")
    return token_ids, token_log_probs(logits, token_ids, temperature)


def _first_above(weights, threshold):
    """min{ i: sum_{j <= i} weights_j > threshold } of each row, and the threshold less the sum before i."""
    possible = weights > 0  # a parallel cumulative sum moves by its rounding error where nothing is added
    cumulative = ops.cumsum(weights, axis=-1)
    above = ops.logical_and(possible, cumulative > ops.expand_dims(threshold, -1))
    indices = ops.arange(weights.shape[-1], dtype="int32")
    last = ops.max(ops.where(possible, indices, 0), axis=-1, keepdims=True)  # where rounding leaves none above
    first = ops.min(ops.where(above, indices, last), axis=-1)
    return first, threshold - (_pick(cumulative, first) - _pick(weights, first))


def _pick(rows, indices):
    """rows[b, indices[b]] of every row b."""
    indices = ops.reshape(indices, (-1, *[1] * (len(rows.shape) - 1)))
    return ops.squeeze(ops.take_along_axis(rows, indices, axis=1), 1)
