"""Every family samples and scores as the model itself says, row by row; generic and fast ones say the same."""

import hub
import numpy as np
import pytest
import tiny
from keras import ops

from keras_bond import families
from keras_bond.rollout import Rollout, weights_of

PROMPTS = ["ab", "c", "abcab", "bca"]
GENERIC = ("gpt2", "qwen3_moe")


def assert_as_its_own(rollout, to_numpy, samples=2, length=5):
    """What is sampled has the log-probabilities of the model's own logits, and is scored with them; gradients too."""
    model, encoded = rollout.causal_lm, rollout.encode(PROMPTS)
    ids, mask = rollout.pad(encoded)
    uniforms = np.random.default_rng(1).random((len(PROMPTS), samples, length), "float32")
    (drawn,) = rollout.sample_each([(weights_of(model), uniforms)], ids, mask)
    token_ids, token_mask, log_probs = map(to_numpy, drawn)
    assert token_ids.shape == (samples * len(PROMPTS), length)
    scores = to_numpy(rollout.score(weights_of(model), ids, mask, token_ids))
    for i, (row, chosen) in enumerate(zip(token_ids, token_mask, strict=True)):
        expected = hub.own_log_probs(model, encoded[i // samples], row)
        np.testing.assert_allclose(scores[i], expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(log_probs[i][chosen], expected[chosen], rtol=1e-4, atol=1e-4)
        assert not row[~chosen].any()
        stops = np.flatnonzero(np.isin(row, rollout.stop_token_ids))
        assert chosen.sum() == (stops[0] + 1 if len(stops) else length)
    return token_ids


@pytest.mark.parametrize("kind", hub.FAST)
def test_a_fast_family_is_the_model_and_draws_what_the_generic_one_draws(kind, to_numpy):
    model = hub.causal_lm(kind)
    rollout = Rollout(model, 8, 5)
    assert rollout.family.name == "llama"
    fast = assert_as_its_own(rollout, to_numpy)
    if kind in ("mistral", "smollm3"):
        generic = assert_as_its_own(Rollout(model, 8, 5, family="generic"), to_numpy)
        np.testing.assert_array_equal(fast, generic)


@pytest.mark.parametrize("kind", GENERIC)
def test_any_model_is_run_by_its_public_methods(kind, to_numpy):
    rollout = Rollout(hub.causal_lm(kind), 8, 5)
    assert rollout.family.name == "generic"
    assert_as_its_own(rollout, to_numpy)


@pytest.mark.parametrize("kind", ["gemma2"])
def test_gemma_by_its_public_methods_draws_the_same(kind, to_numpy):
    model = tiny.causal_lm(kind, scale=0.3)
    drawn = [assert_as_its_own(Rollout(model, 8, 5, family=name), to_numpy) for name in ("generic", "auto")]
    np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize("kind", ["qwen2.5", "gpt2"])
def test_gradients_are_those_of_the_model(kind):
    model = hub.causal_lm(kind)
    rollout = Rollout(model, 8, 3)
    encoded = rollout.encode(PROMPTS)
    completions = np.random.default_rng(2).integers(0, 7, (len(PROMPTS), 3)).astype("int32")
    prompt = [ops.convert_to_tensor(field) for field in rollout.pad(encoded)]

    def own():
        total = 0.0
        for ids, completion in zip(encoded, completions, strict=True):
            row = np.array([[*ids, *completion]], "int32")
            logits = model({"token_ids": row, "padding_mask": np.ones_like(row)})[0, len(ids) - 1 : -1]
            total += ops.sum(ops.log_softmax(logits) * ops.one_hot(completion, 7))
        return total

    def ours():
        return ops.sum(rollout.token_log_probs(*prompt, ops.convert_to_tensor(completions)))

    theirs, found = (tiny.gradients(function, model.trainable_variables) for function in (own, ours))
    largest = max(np.abs(gradient).max() for gradient in theirs)  # that of a bias of keys is 0
    for variable, expected, gradient in zip(model.trainable_variables, theirs, found, strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5 * largest, err_msg=variable.path)


def test_families_by_name():
    model = hub.causal_lm("qwen3")
    assert families.of(model).name == "llama"
    assert families.of(model, "generic").name == "generic"
    assert families.of(tiny.causal_lm("gemma2")).name == "gemma"
    with pytest.raises(ValueError, match=r'family "gemma" does not run this model.*"generic".*Received: a Qwen3Backbone'):
        families.of(model, "gemma")
    with pytest.raises(ValueError, match=r'`family` must be "auto" or one of gemma, llama, generic. Received: .*\'lama\''):
        families.of(model, "lama")
    with pytest.raises(ValueError, match=r"must be a KerasHub `CausalLM`.*Received: int"):
        families.of(1)


def test_more_tokens_than_the_model_has_positions_for_are_refused():
    with pytest.raises(ValueError, match=r"must together be at most 32, .* Received: 20 and 13"):
        Rollout(hub.causal_lm("gpt2"), 20, 13)


class WithoutANorm(families.Llama):
    """Queries as they are projected."""

    def _part(self, layer, name):
        return (lambda query: query) if name == "query_norm" else super()._part(layer, name)


def test_a_family_that_drops_a_norm_is_found_out(monkeypatch):
    model = hub.causal_lm("qwen3", seed=3)
    with monkeypatch.context() as patch:
        patch.setitem(families.FAMILIES, "llama", WithoutANorm)
        with pytest.raises(
            ValueError, match=r'"llama" must give .*, for which they are \d.* nats apart. Pass `family="generic"'
        ):
            Rollout(model, 8, 5)
        Rollout(model, 8, 5, family=families.of(model))  # as it is
        assert Rollout(model, 8, 5, family="generic").family.name == "generic"
    assert families.prove(families.of(model)) < 1e-4
    assert families.prove(families.of(model)) is None  # once for a model


@pytest.mark.parametrize(("kind", "dtype"), [("qwen3", "bfloat16"), ("llama3", "mixed_bfloat16")])
def test_half_precision_is_held_to_its_own_roundings(kind, dtype):
    model = hub.causal_lm(kind, dtype=dtype)
    assert 0 < families.prove(families.of(model)) < 0.2
