"""Whoever samples or measures takes a family: by the generic one it says what it says by the fast one."""

import hub
import keras
import numpy as np
import pytest
import tiny
from lm_eval.api.instance import Instance

import keras_bond
from keras_bond.evaluation.harness import KerasHubLM

pytestmark = pytest.mark.any_backend
PROMPTS = ["ab", "c", "bca"]
SIZES = {"max_prompt_length": 8, "max_completion_length": 4}


@pytest.fixture(scope="module")
def policy():
    return tiny.causal_lm("gemma2", scale=0.3)


def test_best_of_n_sampler(policy):
    fast, generic = (
        keras_bond.BestOfNSampler(policy, tiny.letters_reward, 2, family=family, **SIZES) for family in ("auto", "generic")
    )
    assert generic.rollout.family.name == "generic"
    assert generic.generate(PROMPTS, verbose=0).completions == fast.generate(PROMPTS, verbose=0).completions


def test_evaluation_of_a_policy_and_its_reference(policy):
    reference = tiny.causal_lm("gemma2", seed=1, scale=0.3)
    fast, generic = (
        keras_bond.evaluation.evaluate(policy, reference, tiny.letters_reward, PROMPTS, family=family, **SIZES)
        for family in ("auto", "generic")
    )
    assert generic.samples.texts == fast.samples.texts
    np.testing.assert_allclose(generic.samples.kl, fast.samples.kl, atol=1e-4)  # of log-probs that are held to 1e-4


def test_the_adapter_of_the_harness(policy):
    fast, generic = (KerasHubLM(policy, family=family, max_length=32, max_gen_toks=4) for family in ("auto", "generic"))
    assert generic.rollout.family.name == "generic"
    pairs = [("ab", "ca"), ("c", "ab")]
    assert fast.tok_encode("ab") == generic.tok_encode("ab")
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    scores = [np.array([score for score, _ in adapter.loglikelihood(requests)]) for adapter in (fast, generic)]
    np.testing.assert_allclose(*scores, atol=1e-3)  # of two tokens, each held to 1e-4 times the largest logit


def test_the_adapter_reads_no_more_than_the_model_has_positions_for():
    assert KerasHubLM(hub.causal_lm("gpt2"), max_gen_toks=4).max_length == 32


def test_a_trainer_is_loaded_with_its_family(tmp_path):
    trainer = keras_bond.JBOND(tiny.causal_lm(), keras_bond.rewards.VaderSentiment(), family="generic", **SIZES)
    trainer.compile("sgd")
    trainer.save(tmp_path / "trainer.keras")
    assert keras.saving.load_model(tmp_path / "trainer.keras").rollout.family.name == "generic"
