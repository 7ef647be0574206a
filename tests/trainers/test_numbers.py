"""Arguments of other types than Python's own mean what they say."""

import json

import keras
import numpy as np
import pytest
import tiny
from keras import ops

from keras_bond import BOND, JBOND, BestOfNSampler, quantiles
from keras_bond.evaluation import evaluate
from keras_bond.rollout import Rollout

pytestmark = pytest.mark.any_backend

PLAIN = {
    "n": 2,
    "beta": 0.5,
    "eta": 0.25,
    "gamma": 0.5,
    "num_anchor_samples": 3,
    "num_samples": 1,
    "microbatch_size": 2,
    "sampling_batch_size": 2,
    "max_prompt_length": 4,
    "max_completion_length": 3,
    "temperature": 0.5,
    "stop_token_ids": [1],
    "seed": 3,
}
NUMPY = {name: np.float32(value) if isinstance(value, float) else np.array(value)[()] for name, value in PLAIN.items()}
PROMPTS = ["ab", "c", "bca"]


def test_numbers_of_numpy_train_alike():
    def train(settings, prompts, convert):
        trainer = JBOND(tiny.causal_lm(), tiny.letters_reward, **settings)
        trainer.compile(keras.optimizers.SGD(0.1))
        sizes = {"batch_size": convert(2), "steps_per_epoch": convert(2), "epochs": convert(1)}
        history = trainer.fit(prompts, **sizes, verbose=0).history
        return trainer, history, trainer.evaluate(prompts, batch_size=convert(2), verbose=0)

    (ours, *logs), (plain, *expected) = train(NUMPY, np.array(PROMPTS), np.int64), train(PLAIN, PROMPTS, int)
    assert logs == expected
    for a, b in zip(ours.variables, plain.variables, strict=True):
        np.testing.assert_array_equal(*(ops.convert_to_numpy(v.value) for v in (a, b)))
    ours, plain = ({k: v for k, v in t.get_config().items() if k not in ("name", "policy", "reward")} for t in (ours, plain))
    ours, plain = ({**config, "anchor": config["anchor"]["config"]["eta"]} for config in (ours, plain))
    assert json.dumps(ours) == json.dumps(plain)


def test_numbers_of_numpy_in_the_rest_of_the_family(to_numpy):
    policy, sizes = tiny.causal_lm(), {"max_prompt_length": np.int64(4), "max_completion_length": np.int64(3)}
    sampler = BestOfNSampler(policy, tiny.letters_reward, np.int64(3), batch_size=np.int32(4), seed=np.int64(1), **sizes)
    assert len(sampler.generate(np.array(PROMPTS), verbose=0).completions) == 3
    settings = {"num_samples": np.int64(2), "num_reference_samples": np.int64(3), "best_of_n": np.int64(2)}
    result = evaluate(
        policy, None, tiny.letters_reward, PROMPTS, batch_size=np.int64(2), seed=np.int64(0), **settings, **sizes
    )
    assert result.samples.rewards.shape == (3, 2)
    settings = {"n": np.int64(2), "beta": np.float32(0.5), "quantiles": quantiles.MonteCarlo(np.int64(4), np.float32(1))}
    trainer = BOND(policy, tiny.letters_reward, exact_ties=True, **settings, **sizes)
    trainer.compile(keras.optimizers.SGD(0.1))
    assert np.isfinite(trainer.fit(PROMPTS, batch_size=2, steps_per_epoch=1, verbose=0).history["loss"][0])
    assert json.dumps(trainer.quantiles.get_config()) == '{"num_samples": 4, "smoothing": 1.0}'


@pytest.mark.parametrize("seed", [None, -1, 1.5, "0"])
@pytest.mark.parametrize(
    "make",
    [
        lambda seed: JBOND(tiny.causal_lm(), tiny.letters_reward, seed=seed),
        lambda seed: BestOfNSampler(tiny.causal_lm(), tiny.letters_reward, 2, seed=seed),
        lambda seed: evaluate(tiny.causal_lm(), None, tiny.letters_reward, PROMPTS, seed=seed),
    ],
    ids=["trainer", "sampler", "evaluate"],
)
def test_a_seed_is_an_integer_of_at_least_0(make, seed):
    with pytest.raises(ValueError, match=r"`seed` must be an integer of at least 0\. Received: seed="):
        make(seed)


@pytest.mark.parametrize("stops", ["1", 1, [1.5], None, ["</s>"], [-1], [7], [True]])
def test_stop_tokens_are_integers(stops):
    with pytest.raises(
        ValueError,
        match=r'`stop_token_ids` must be "auto" or a sequence of token ids, each below 7. Received: stop_token_ids=',
    ):
        Rollout(tiny.causal_lm(), 4, 3, stop_token_ids=stops)
    assert Rollout(tiny.causal_lm(), 4, 3, stop_token_ids=np.array([1, 4])).stop_token_ids == (1, 4)
