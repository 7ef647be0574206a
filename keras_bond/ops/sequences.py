"""Token and sequence log-probabilities, masks, and the draw of a token.

log pi(y|x) is the SUM of the log-probs of the completion's tokens at the sampling temperature: its stop token included,
nothing after it, no prompt token.
"""

from keras import ops

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
