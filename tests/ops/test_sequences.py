import itertools

import numpy as np
import pytest
from keras import ops

from keras_bond.ops import (
    completion_mask,
    draw_tokens,
    greedy_tokens,
    sequence_kl,
    sequence_log_prob,
    token_log_probs,
    truncated_draw,
)


def log_softmax(logits):
    logits = np.asarray(logits, "float64")
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


# token_log_probs


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("shape", [(3,), (2, 4)])
def test_token_log_probs(shape, temperature, to_numpy):
    rng = np.random.default_rng(0)
    logits, tokens = rng.normal(size=(*shape, 7)).astype("float32") * 3, rng.integers(0, 7, shape)
    expected = np.take_along_axis(log_softmax(logits / temperature), tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(to_numpy(token_log_probs(logits, tokens, temperature)), expected, rtol=1e-5, atol=1e-6)


def test_token_log_probs_do_not_overflow(to_numpy):
    logits = [[1000.0, 999.0, -1000.0]] * 3
    np.testing.assert_allclose(
        to_numpy(token_log_probs(logits, [0, 1, 2])), log_softmax([1000.0, 999.0, -1000.0]), rtol=1e-4
    )


def test_token_log_probs_of_half_precision_logits_are_float32(to_numpy):
    """log-softmax in bfloat16 would keep three digits."""
    logits = ops.convert_to_tensor(np.random.default_rng(0).normal(size=(4, 50)), "bfloat16")
    ours = token_log_probs(logits, [0, 7, 20, 49])
    assert ops.dtype(ours) == "float32"
    expected = log_softmax(to_numpy(ops.cast(logits, "float32")))[np.arange(4), [0, 7, 20, 49]]
    np.testing.assert_allclose(to_numpy(ours), expected, rtol=1e-5)


def test_token_log_probs_gradient(gradient):
    logits = np.array([[0.3, -1.0, 2.0], [0.0, 0.5, -0.5]])
    ours = gradient(lambda x: ops.sum(token_log_probs(x, [2, 0], 0.5)), logits)
    expected = (np.eye(3)[[2, 0]] - np.exp(log_softmax(logits / 0.5))) / 0.5
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


# completion_mask


def test_mask_ends_with_the_first_of_several_stop_tokens(to_numpy):
    tokens = [[5, 1, 1, 7], [5, 106, 1, 7], [1, 5, 106, 5], [5, 6, 7, 1], [5, 6, 7, 8], [106, 106, 106, 106]]
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]]
    mask = completion_mask(tokens, (1, 106))
    assert ops.dtype(mask) == "bool"
    np.testing.assert_array_equal(to_numpy(mask), np.array(expected, bool))


@pytest.mark.parametrize(("stops", "length"), [((), 5), ((3,), 4), ((9, 2), 3), ((9,), 5)])
def test_mask_knows_only_the_stop_tokens_it_is_given(stops, length, to_numpy):
    np.testing.assert_array_equal(to_numpy(completion_mask([[0, 1, 2, 3, 4]], stops)), [np.arange(5) < length])


def test_mask_is_the_loop_over_tokens(to_numpy):
    tokens, stops = np.random.default_rng(0).integers(0, 12, (200, 9)), (3, 7)
    expected = [[not any(t in stops for t in row[:i]) for i in range(9)] for row in tokens.tolist()]
    np.testing.assert_array_equal(to_numpy(completion_mask(tokens, stops)), expected)


# sequence_log_prob

LOG_PROBS = np.array([[-1.0, -2.0, np.nan], [-0.5, np.inf, -np.inf], [np.nan, -4.0, -8.0]])
MASK = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 1]])


@pytest.mark.parametrize("dtype", ["bool", "int32", "float32"])
def test_sequence_log_prob_sums_what_the_mask_lets_in(dtype, to_numpy):
    np.testing.assert_allclose(to_numpy(sequence_log_prob(LOG_PROBS, MASK.astype(dtype))), [-3.0, -0.5, -12.0], rtol=1e-6)


def test_sequence_log_prob_gradient_is_the_mask(gradient):
    np.testing.assert_array_equal(gradient(lambda x: ops.sum(sequence_log_prob(x, MASK)), LOG_PROBS), MASK)


# sequence_kl


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sequence_kl_sums_the_kl_of_each_token(temperature, to_numpy):
    rng = np.random.default_rng(0)
    logits, reference = rng.normal(size=(2, 3, 4, 6)).astype("float32") * 2
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    logits[1, 2], reference[2, 3] = np.nan, np.inf  # behind the stop token
    log_p, log_q = (log_softmax(np.where(mask[..., None], x, 0) / temperature) for x in (logits, reference))
    expected = np.sum(np.exp(log_p) * (log_p - log_q), axis=-1).sum(axis=1)
    np.testing.assert_allclose(to_numpy(sequence_kl(logits, reference, mask, temperature)), expected, rtol=1e-5)


def test_sequence_kl_to_itself_is_zero(to_numpy):
    logits = np.random.default_rng(0).normal(size=(2, 3, 5))
    np.testing.assert_array_equal(to_numpy(sequence_kl(logits, logits, np.ones((2, 3)))), 0)


def test_sequence_kl_obeys_the_chain_rule(to_numpy):
    """Every completion of at most 3 tokens out of 3, 0 stops: E_pi[sequence_kl] = E_pi[log pi(y) - log rho(y)]."""
    rng = np.random.default_rng(0)
    temperature, stop, pad = 0.7, 0, 0
    tables = {prefix: rng.normal(size=(2, 3)) for t in range(3) for prefix in itertools.product((1, 2), repeat=t)}
    completions = sorted({y[: y.index(stop) + 1] if stop in y else y for y in itertools.product(range(3), repeat=3)})
    assert len(completions) == 1 + 2 + 12
    tokens = np.array([y + (pad,) * (3 - len(y)) for y in completions])
    nowhere = np.full((2, 3), np.nan)  # what follows the stop token must not count
    logits, reference = np.moveaxis([[tables.get(y[:t], nowhere) for t in range(3)] for y in completions], 2, 0)

    mask = completion_mask(tokens, (stop,))
    log_pi = to_numpy(sequence_log_prob(token_log_probs(logits, tokens, temperature), mask)).astype("float64")
    log_rho = to_numpy(sequence_log_prob(token_log_probs(reference, tokens, temperature), mask)).astype("float64")
    by_hand = [sum(log_softmax(tables[y[:t]][0] / temperature)[token] for t, token in enumerate(y)) for y in completions]
    np.testing.assert_allclose(log_pi, by_hand, rtol=1e-5)
    assert np.exp(log_pi).sum() == pytest.approx(1, rel=1e-5)
    assert np.exp(log_rho).sum() == pytest.approx(1, rel=1e-5)
    ours = np.exp(log_pi) @ to_numpy(sequence_kl(logits, reference, mask, temperature))
    assert ours == pytest.approx(np.exp(log_pi) @ (log_pi - log_rho), rel=1e-5)


# draw_tokens


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_draw_inverts_the_distribution_function(temperature, to_numpy):
    logits = np.random.default_rng(1).normal(size=11).astype("float32") * 2 + 50
    log_p = log_softmax(logits / temperature)
    uniforms = ((np.arange(1000) + 0.5) / 1000).astype("float32")
    cumulative = np.cumsum(np.exp(log_p))
    assert np.abs(uniforms[:, None] - cumulative[:-1]).min() > 1e-6  # no uniform where rounding decides
    expected = np.searchsorted(cumulative, uniforms, side="right")
    tokens, log_probs = draw_tokens(np.tile(logits, (1000, 1)), uniforms, temperature)
    assert (ops.dtype(tokens), ops.dtype(log_probs)) == ("int32", "float32")
    np.testing.assert_array_equal(to_numpy(tokens), expected)
    np.testing.assert_allclose(to_numpy(log_probs), log_p[expected], rtol=1e-5, atol=1e-6)


def test_draw_at_the_steps_goes_to_the_next_token(to_numpy):
    """min{v: F(v) > u}: u = 0 is the first token, u = 1/4 the second of four."""
    tokens, _ = draw_tokens(np.zeros((8, 4), "float32"), np.arange(8) / 8)
    np.testing.assert_array_equal(to_numpy(tokens), [0, 0, 1, 1, 2, 2, 3, 3])


def test_draw_frequencies(to_numpy):
    logits, size = np.array([[0.0, 2.0, -1.0, 1.0, 0.5], [3.0, -2.0, 0.0, 0.0, 1.0]]), 20_000
    rng = np.random.default_rng(0)
    for row in logits:
        p = np.exp(log_softmax(row / 0.8))
        tokens, _ = draw_tokens(np.tile(row, (size, 1)), rng.random(size), 0.8)
        counts = np.bincount(to_numpy(tokens), minlength=5)
        assert (np.abs(counts - size * p) < 4 * np.sqrt(size * p * (1 - p))).all()
        assert np.sum((counts - size * p) ** 2 / (size * p)) < 4 + 4 * np.sqrt(2 * 4)  # chi-square, 4 degrees of freedom


@pytest.mark.parametrize("vocabulary", [5, 2048])
@pytest.mark.parametrize("nothing", [-np.inf, -1e9])
def test_draw_never_takes_a_token_without_mass(vocabulary, nothing, to_numpy):
    """Holes everywhere, at both ends too, and uniforms of 0, just below 1, and between."""
    rng = np.random.default_rng(0)
    rows = 64
    logits = rng.normal(size=(rows, vocabulary)).astype("float32") * 3
    holes = rng.random((rows, vocabulary)) < 0.5
    holes[:, -vocabulary // 3 :], holes[:, 0], holes[:, 1] = True, True, False
    logits[holes] = nothing
    uniforms = rng.random(rows).astype("float32")
    uniforms[:40], uniforms[40:50] = 1 - 2**-24, 0
    tokens, log_probs = (to_numpy(x) for x in draw_tokens(logits, uniforms))
    assert not holes[np.arange(rows), tokens].any()
    np.testing.assert_allclose(log_probs, log_softmax(logits)[np.arange(rows), tokens], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(tokens[40:50], 1)


def test_draw_near_one_takes_the_last_token_with_mass(to_numpy):
    rows = np.array([[0, 0, 0, 0], [0, 1, -np.inf, -np.inf], [5, -np.inf, -1e9, -1e9], [-1e9, -np.inf, -3, -1e9]] * 2)
    tokens, log_probs = draw_tokens(rows, np.full(8, 1 - 2**-24, "float32"))
    np.testing.assert_array_equal(to_numpy(tokens), [3, 1, 0, 2] * 2)
    expected = [-np.log(4), 1 - np.log1p(np.e), 0, 0] * 2
    np.testing.assert_allclose(to_numpy(log_probs), expected, rtol=1e-5, atol=1e-6)


def test_draw_agrees_with_token_log_probs(to_numpy):
    logits = np.random.default_rng(2).normal(size=(1000, 11))
    tokens, log_probs = draw_tokens(logits, np.linspace(0, 0.999, 1000), 0.6)
    np.testing.assert_allclose(to_numpy(log_probs), to_numpy(token_log_probs(logits, tokens, 0.6)), rtol=1e-5, atol=1e-6)


# greedy_tokens


def test_greedy_takes_the_first_of_the_best(to_numpy):
    logits = np.random.default_rng(3).normal(size=(100, 7)).astype("float32")
    logits[:50, 2] = logits[:50, 5] = 9
    tokens, log_probs = greedy_tokens(logits, None, 0.6)
    assert (ops.dtype(tokens), ops.dtype(log_probs)) == ("int32", "float32")
    np.testing.assert_array_equal(to_numpy(tokens), logits.argmax(-1))
    expected = log_softmax(logits / 0.6)[np.arange(100), logits.argmax(-1)]
    np.testing.assert_allclose(to_numpy(log_probs), expected, rtol=1e-5, atol=1e-6)


# truncated_draw


def kept_tokens(log_p, top_k, top_p, min_p):
    """The tokens that may be drawn, by going through them from the most probable on: float64, without ties."""
    order = np.argsort(-log_p)
    order = order[: top_k or len(order)]
    p = np.exp(log_p[order]) / np.exp(log_p[order]).sum()
    return {v for i, v in enumerate(order) if p[:i].sum() < top_p and np.exp(log_p[v] - log_p.max()) >= min_p}


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"top_k": 3},
        {"top_k": 99},
        {"top_p": 0.8},
        {"top_p": 1e-6},
        {"min_p": 0.4},
        {"top_k": 4, "top_p": 0.7},
        {"top_k": 6, "top_p": 0.9, "min_p": 0.2},
    ],
    ids=str,
)
def test_truncated_draw_is_the_renormalised_distribution(temperature, settings, to_numpy):
    logits = np.random.default_rng(5).normal(size=11).astype("float32") * 2 + 50
    log_p = log_softmax(logits.astype("float64") / temperature)
    kept = kept_tokens(log_p, **{"top_k": 0, "top_p": 1, "min_p": 0, **settings})
    log_p = log_softmax(np.where([v in kept for v in range(11)], log_p, -np.inf))
    uniforms = ((np.arange(1000) + 0.5) / 1000).astype("float32")
    expected = np.searchsorted(np.cumsum(np.exp(log_p)), uniforms, side="right")
    assert np.abs(uniforms[:, None] - np.cumsum(np.exp(log_p))[:-1]).min() > 1e-6  # no uniform where rounding decides
    tokens, log_probs = truncated_draw(**settings)(np.tile(logits, (1000, 1)), uniforms, temperature)
    assert (ops.dtype(tokens), ops.dtype(log_probs)) == ("int32", "float32")
    np.testing.assert_array_equal(to_numpy(tokens), expected)
    np.testing.assert_allclose(to_numpy(log_probs), log_p[expected], rtol=1e-5, atol=1e-6)
    assert {*to_numpy(tokens).tolist()} <= kept


@pytest.mark.parametrize(
    ("settings", "kept"),
    [({"top_k": 2}, [1, 2, 3]), ({"top_p": 0.6}, [1, 2, 3]), ({"top_p": 0.4}, [2]), ({"min_p": 0.3}, [1, 2, 3])],
)
def test_truncated_draw_keeps_what_is_as_probable_as_the_last(settings, kept, to_numpy):
    p = np.array([[1 / 16, 3 / 16, 1 / 2, 3 / 16, 1 / 16]])
    tokens, _ = truncated_draw(**settings)(np.tile(np.log(p), (400, 1)), np.arange(400) / 400)
    np.testing.assert_array_equal(np.unique(to_numpy(tokens)), kept)


@pytest.mark.parametrize("vocabulary", [7, 4096])
def test_truncated_draw_of_rows_that_differ(vocabulary, to_numpy):
    """Each row has a set of its own, whatever stands beside it; holes stay holes."""
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(32, vocabulary)) * 3
    logits[:, ::3] = -np.inf
    uniforms = rng.random(32)
    uniforms[:8] = 1 - 2**-24
    draw = truncated_draw(top_k=vocabulary - 1, top_p=0.9)
    tokens = to_numpy(draw(logits, uniforms)[0])
    for row, token in zip(logits, tokens, strict=True):
        log_p = log_softmax(row.astype("float32"))
        order = np.argsort(-log_p)
        assert np.exp(log_p[order[: list(order).index(token)]]).sum() < 0.9 + 1e-5
    alone = [int(to_numpy(draw(logits[i : i + 1], uniforms[i : i + 1])[0])[0]) for i in range(8)]
    assert alone == tokens[:8].tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": -1}, "`top_k` must be an integer of at least 0. Received: top_k=-1"),
        ({"top_k": 2.5}, "`top_k` must be an integer of at least 0. Received: top_k=2.5"),
        ({"top_p": 0.0}, "`top_p` must be above 0. Received: top_p=0.0"),
        ({"top_p": 1.5}, r"`top_p` must lie in \[0, 1\]. Received: top_p=1.5"),
        ({"min_p": -0.1}, r"`min_p` must lie in \[0, 1\]. Received: min_p=-0.1"),
    ],
)
def test_truncated_draw_refuses_what_is_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        truncated_draw(**settings)
