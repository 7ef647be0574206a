"""Sampling and scoring against enumeration, and against the plain model without a cache and without left padding."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tiny
from keras import ops

from keras_bond.ops import sequence_log_prob
from keras_bond.rollout import Completions, Rollout, weights_of

KINDS = ("gemma", "gemma2", "gemma3")
PROMPTS = ["ab", "c", "abcab", "bca"]


@pytest.fixture(scope="module", params=KINDS)
def policy(request):
    return tiny.causal_lm(request.param)


def plain_log_probs(policy, prompt, completion, temperature=1.0, width=16):
    """log-softmax of the model's own logits for one row, padded on the right as KerasHub does: float64."""
    row, mask = np.zeros((2, 1, width), "int32")
    length = len(prompt) + len(completion)
    row[0, :length], mask[0, :length] = [*prompt, *completion], 1
    logits = ops.convert_to_numpy(policy({"token_ids": row, "padding_mask": mask}))[0].astype("float64") / temperature
    log_probs = logits - logits.max(-1, keepdims=True)
    log_probs -= np.log(np.exp(log_probs).sum(-1, keepdims=True))
    return log_probs[len(prompt) - 1 : length - 1]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_score_equals_the_plain_model_on_ragged_prompts(policy, temperature):
    rollout = Rollout(policy, 8, 5, temperature)
    encoded = rollout.encode(PROMPTS)
    ids, mask = rollout.pad(encoded)
    completions = np.random.default_rng(0).integers(0, 7, (len(PROMPTS), 5)).astype("int32")
    scores = ops.convert_to_numpy(rollout.score(weights_of(policy), ids, mask, completions))
    for prompt, completion, score in zip(encoded, completions, scores, strict=True):
        expected = plain_log_probs(policy, prompt, completion, temperature)[np.arange(5), completion]
        np.testing.assert_allclose(score, expected, rtol=1e-4, atol=1e-5)


def test_completions_share_the_pass_of_their_prompt(policy, to_numpy):
    """Log-probabilities and gradients of 3 completions a prompt are those of the model's own logits, row by row."""
    rollout, samples, length = Rollout(policy, 8, 5), 3, 5
    encoded = rollout.encode(PROMPTS)
    rng = np.random.default_rng(5)
    completions = rng.integers(0, 7, (samples * len(PROMPTS), length)).astype("int32")
    factor = ops.convert_to_tensor(rng.standard_normal(completions.shape, "float32"))
    prompt = [ops.convert_to_tensor(field) for field in rollout.pad(encoded)]

    rows, mask = np.zeros((2, len(completions), 16), "int32")
    places = np.zeros((len(completions), length, 1), "int32")
    for i, completion in enumerate(completions):
        ids = [*encoded[i // samples], *completion]
        rows[i, : len(ids)], mask[i, : len(ids)] = ids, 1
        places[i, :, 0] = np.arange(len(ids) - length, len(ids)) - 1

    def plain():
        logits = ops.take_along_axis(policy({"token_ids": rows, "padding_mask": mask}), places, axis=1)
        log_probs = ops.take_along_axis(ops.log_softmax(logits), np.expand_dims(completions, 2), axis=2)
        return ops.squeeze(log_probs, 2)

    def shared():
        return rollout.token_log_probs(*prompt, ops.convert_to_tensor(completions))

    np.testing.assert_allclose(to_numpy(shared()), to_numpy(plain()), rtol=0, atol=tiny.ROUNDING)  # log-probs of about 1
    expected, found = (
        tiny.gradients(lambda f=f: ops.sum(factor * f()), policy.trainable_variables) for f in (plain, shared)
    )
    largest = max(np.abs(theirs).max() for theirs in expected)  # of a variable all may cancel
    for variable, theirs, ours in zip(policy.trainable_variables, expected, found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tiny.ROUNDING * largest, err_msg=variable.path)


def test_completions_are_equally_many_for_each_prompt():
    policy = tiny.causal_lm()
    rollout = Rollout(policy, 4, 2)
    with pytest.raises(ValueError, match=r"`completion_ids` must .* Received: 3 completions of 2 prompts"):
        rollout.score(weights_of(policy), *rollout.pad(rollout.encode(["ab", "c"])), np.ones((3, 2), "int32"))


def test_a_model_that_embeds_is_refused_and_layers_of_another_kind_are_called():
    policy, embedder = tiny.causal_lm(), tiny.causal_lm("gemma3")
    policy.backbone.transformer_layers[0].__class__ = type("Doubled", (type(policy.backbone.transformer_layers[0]),), {})
    assert Rollout(policy, 4, 2).family.name == "generic"
    embedder.backbone.use_bidirectional_attention = True
    with pytest.raises(ValueError, match="use_bidirectional_attention=True"):
        Rollout(embedder, 4, 2)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3"])
def test_layers_of_a_remat_scope_are_computed_again(kind):
    with keras.RematScope("list_of_layers", layer_names=["decoder_block_0", "decoder_block_1"]):
        again = tiny.causal_lm(kind)
    completions = ops.convert_to_tensor(np.random.default_rng(6).integers(0, 7, (8, 4)).astype("int32"))
    gradients, programs = [], []
    for policy in (tiny.causal_lm(kind), again):
        rollout = Rollout(policy, 8, 4)
        prompt = [ops.convert_to_tensor(field) for field in rollout.pad(rollout.encode(PROMPTS))]
        log_prob = lambda r=rollout, p=prompt: ops.sum(r.token_log_probs(*p, completions))  # noqa: E731
        gradients.append(tiny.gradients(log_prob, policy.trainable_variables))
        if keras.config.backend() == "jax":
            import jax

            programs.append(str(jax.make_jaxpr(log_prob)()))
    largest = max(np.abs(once).max() for once in gradients[0])
    for once, twice in zip(*gradients, strict=True):
        np.testing.assert_allclose(twice, once, rtol=0, atol=tiny.ROUNDING * largest)
    assert [program.count("remat2[") for program in programs] in ([], [0, 4])  # prompts and completions, two layers


def test_a_remat_scope_for_large_outputs_lets_small_layers_be(to_numpy):
    with keras.RematScope("larger_than", output_size_threshold=10**6):
        mode = keras.layers.Identity()._remat_mode  # a tokenizer made here cannot be called
    scores = []
    for remat_mode in (None, mode):
        policy = tiny.causal_lm()
        for layer in policy.backbone.transformer_layers:
            layer._remat_mode = remat_mode
        rollout = Rollout(policy, 4, 2)
        scores.append(to_numpy(rollout.score(weights_of(policy), *rollout.pad([[2, 4]]), np.array([[4, 5]], "int32"))))
    np.testing.assert_allclose(*scores, rtol=1e-6)


@pytest.mark.usefixtures("xla_for_cpus")
@pytest.mark.skipif(keras.config.backend() != "jax", reason="reads JAX's count of operations")
def test_a_prompt_is_passed_forward_once():
    """With 7 tokens of a prompt to 2 of a completion, 8 completions are 7 + 8 x 2 tokens in place of 8 x 9."""
    import jax

    rollout = Rollout(tiny.causal_lm("gemma2"), 8, 2)

    def operations(prompts, rows):
        shapes = [jax.ShapeDtypeStruct(shape, "int32") for shape in ((prompts, 8), (prompts, 8), (rows, 2))]
        return jax.jit(rollout.hidden).lower(*shapes).cost_analysis()["flops"]

    assert operations(1, 8) < 0.45 * operations(8, 8)


def test_sampling_with_a_cache_equals_inverting_the_plain_distribution(policy):
    rollout = Rollout(policy, 8, 6)
    encoded = rollout.encode(PROMPTS)
    ids, mask = rollout.pad(encoded)
    uniforms = np.random.default_rng(1).random((len(PROMPTS), 6), "float32")
    sampled = rollout.sample(weights_of(policy), ids, mask, uniforms)
    token_ids, token_mask, log_probs = (ops.convert_to_numpy(field) for field in sampled)
    for row, prompt in enumerate(encoded):
        completion = []
        for u in uniforms[row]:
            distribution = np.exp(plain_log_probs(policy, prompt, [*completion, 0])[-1])
            completion.append(int(np.searchsorted(np.cumsum(distribution), u)))
            np.testing.assert_allclose(log_probs[row, len(completion) - 1], np.log(distribution[completion[-1]]), atol=1e-4)
            if completion[-1] in rollout.stop_token_ids:
                break
        np.testing.assert_array_equal(token_ids[row, : len(completion)], completion)
        np.testing.assert_array_equal(token_mask[row], np.arange(6) < len(completion))


def test_the_width_of_the_padding_changes_nothing(policy):
    rollout = Rollout(policy, 16, 4)
    encoded, weights = rollout.encode(PROMPTS), weights_of(policy)
    completions = np.random.default_rng(2).integers(2, 7, (len(PROMPTS), 4)).astype("int32")
    narrow, wide = (
        ops.convert_to_numpy(rollout.score(weights, *rollout.pad(encoded, width), completions)) for width in (6, 16)
    )
    np.testing.assert_allclose(narrow, wide, rtol=2e-5, atol=2e-5)  # other rotations, other roundings


def test_samples_have_the_enumerated_distribution():
    policy = tiny.causal_lm()
    rollout, batch, rounds = Rollout(policy, 4, 3), 512, 12
    all_ids, all_mask = tiny.completions(7, 3)
    ids, mask = rollout.pad(rollout.encode([tiny.PROMPT] * len(all_ids)))
    log_probs = rollout.score(weights_of(policy), ids, mask, all_ids)
    p = np.exp(ops.convert_to_numpy(sequence_log_prob(log_probs, all_mask)).astype("float64"))
    np.testing.assert_allclose(p.sum(), 1, atol=1e-5)

    ids, mask = rollout.pad(rollout.encode([tiny.PROMPT] * batch))
    index = {tuple(row): i for i, row in enumerate(all_ids)}
    counts, rng = np.zeros(len(all_ids)), np.random.default_rng(3)
    for _ in range(rounds):
        sampled = rollout.sample(weights_of(policy), ids, mask, rng.random((batch, 3), "float32"))
        for row in ops.convert_to_numpy(sampled.token_ids):
            counts[index[tuple(row)]] += 1
    n = batch * rounds
    frequent = n * p > 20
    z = (counts - n * p)[frequent] / np.sqrt(n * p * (1 - p))[frequent]
    assert np.abs(z).max() < 4
    chi_square, freedom = np.sum(z**2), frequent.sum()
    assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)


def test_all_stop_tokens_stop_and_only_in_the_completion():
    policy = tiny.causal_lm()
    rollout = Rollout(policy, 8, 6, stop_token_ids=(1, 4))  # 4 is the letter a, which stands in the prompt
    ids, mask = rollout.pad(rollout.encode(["aab"] * 64))
    uniforms = np.random.default_rng(4).random((64, 6), "float32")
    token_ids, token_mask, _ = (ops.convert_to_numpy(x) for x in rollout.sample(weights_of(policy), ids, mask, uniforms))
    for row, row_mask in zip(token_ids, token_mask, strict=True):
        stops = np.flatnonzero(np.isin(row, (1, 4)))
        length = stops[0] + 1 if len(stops) else 6
        np.testing.assert_array_equal(row_mask, np.arange(6) < length)
        assert not row[length:].any()
    assert {1, 4} <= set(token_ids.ravel())
    assert rollout.decode(Completions(np.array([[5, 4, 0]]), np.array([[True, True, False]]), None)) == ["b"]


def test_other_weights_in_the_same_program(to_numpy):
    policy, other = tiny.causal_lm(seed=0), tiny.causal_lm(seed=1)
    rollout, others = Rollout(policy, 4, 3), Rollout(other, 4, 3)
    ids, mask = rollout.pad(rollout.encode(["ab", "c"]))
    completions = np.array([[4, 5, 1], [6, 6, 6]], "int32")
    weights = weights_of(policy, [v.value for v in other.trainable_variables])
    expected = to_numpy(others.score(weights_of(other), ids, mask, completions))
    ours = to_numpy(rollout.score(weights_of(policy), ids, mask, completions))
    np.testing.assert_allclose(to_numpy(rollout.score(weights, ids, mask, completions)), expected, atol=1e-6)
    assert np.abs(ours - expected).max() > 1e-2
    assert rollout._score.traces <= 1  # one compilation for both


@pytest.mark.parametrize("lora", [None, 2])
def test_some_prompts_at_a_time_have_the_samples_of_all(lora, to_numpy):
    policy = tiny.causal_lm(lora=lora)
    rng, prompts = np.random.default_rng(0), ["ab", "c", "ba", "a", "cb", "abc"]
    anchor = [v + rng.normal(0, 0.3, v.shape).astype("float32") for v in map(to_numpy, policy.trainable_variables)]
    uniforms = rng.random((6, 1, 5), "float32"), rng.random((6, 3, 5), "float32")

    def sample(size):
        rollout = Rollout(policy, 4, 5, sampling_batch_size=size)
        sources = zip((weights_of(policy), weights_of(policy, anchor)), uniforms, strict=True)
        return rollout.sample_each([*sources], *rollout.pad(rollout.encode(prompts)))

    for of_all, of_some in zip(sample(None), sample(2), strict=True):
        assert len({tuple(row) for row in to_numpy(of_all.token_ids)}) > 3
        np.testing.assert_array_equal(to_numpy(of_some.token_ids), to_numpy(of_all.token_ids))
        np.testing.assert_array_equal(to_numpy(of_some.mask), to_numpy(of_all.mask))
        np.testing.assert_allclose(to_numpy(of_some.log_probs), to_numpy(of_all.log_probs), rtol=0, atol=tiny.ROUNDING)


@pytest.mark.usefixtures("xla_for_cpus")
@pytest.mark.skipif(keras.config.backend() != "jax", reason="XLA tells what memory a program takes")
def test_some_prompts_at_a_time_take_less_memory():
    import jax

    policy = tiny.causal_lm(head_dim=64)

    def temporaries(size):
        rollout = Rollout(policy, 4, 256, sampling_batch_size=size)
        arguments = [(weights_of(policy), np.zeros((16, 4, 256), "float32"))], *np.ones((2, 16, 4), "int32")
        return jax.jit(rollout._sample_function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(2) < temporaries(None) / 3


def test_a_prompt_that_is_too_long_is_named():
    rollout = Rollout(tiny.causal_lm(), 4, 3)
    with pytest.raises(ValueError, match=r"Prompt 1 has 6 tokens .* more than `max_prompt_length`=4\..*'abcab'"):
        rollout.encode(["ab", "abcab"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "`temperature` must be above 0"),
        ({"temperature": float("inf")}, r"`temperature` must be finite and be above 0.*Received: temperature=inf"),
        ({"max_prompt_length": 0}, "`max_prompt_length` must be an integer of at least 1"),
        ({"max_completion_length": 2.5}, "`max_completion_length` must be an integer"),
        ({"sampling_batch_size": 0}, "`sampling_batch_size` must be an integer of at least 1"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        Rollout(tiny.causal_lm(), **{"max_prompt_length": 4, "max_completion_length": 3, **change})


def test_a_model_without_preprocessor_or_of_another_kind_is_refused():
    policy = tiny.causal_lm()
    policy.preprocessor = None
    with pytest.raises(ValueError, match="needs its `preprocessor`"):
        Rollout(policy, 4, 3)
    with pytest.raises(ValueError, match=r"must be a KerasHub `CausalLM`.*Received: str"):
        Rollout("gemma", 4, 3)
    policy = SimpleNamespace(call_with_cache=None, backbone=None, input={"images": None, "token_ids": None})
    policy.backbone = SimpleNamespace(vision_encoder=object())
    with pytest.raises(
        ValueError, match=r"must be a model of text.*Received: SimpleNamespace with inputs images, token_ids"
    ):
        Rollout(policy, 4, 3)
