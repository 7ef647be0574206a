"""What a reward is given in `fit`, and what is said before anything is sampled."""

import keras
import numpy as np
import pytest
import tiny
from scripted import make

from keras_bond import BOND, JBOND, BestOfNSFT, Reinforce
from keras_bond.quantiles import Learned, MonteCarlo

pytestmark = pytest.mark.any_backend

TABLE = {"prompt": ["ab", "c", "ba"], "answer": ["1", "2", "3"]}


@pytest.mark.parametrize("settings", [{"num_samples": 2, "num_anchor_samples": 3}, {"algorithm": Reinforce}])
def test_text_tokens_and_columns_belong_together(settings):
    policy, calls = tiny.causal_lm(), []
    detokenize = policy.preprocessor.tokenizer.detokenize

    def reward(completion_ids, completions, answer, prompts):
        calls.append(completion_ids)
        for ids, text, of_prompt, prompt in zip(completion_ids, completions, answer, prompts, strict=True):
            assert 1 <= len(ids) <= 3
            assert 1 not in ids[:-1]  # the stop token is the last
            assert len(ids) == 3 or ids[-1] == 1
            text_of = detokenize([[t for t in ids if t != 1]])[0]
            assert (text_of.numpy().decode() if hasattr(text_of, "numpy") else text_of) == text
            assert TABLE["prompt"].index(prompt) == TABLE["answer"].index(of_prompt)
        return tiny.letters_reward(prompts, completions)

    trainer = make(policy, reward, optimizer=keras.optimizers.SGD(0.01), **settings)
    trainer.fit(TABLE, batch_size=4, steps_per_epoch=1, verbose=0)
    assert [len(ids) for ids in calls] == [4 * (trainer.num_samples + trainer.num_anchor_samples)]
    trainer.evaluate(TABLE, batch_size=3, verbose=0)
    assert len(calls) == 2


def test_names_decide_and_not_places():
    by_name = lambda completions, prompts: tiny.letters_reward(prompts, completions)  # noqa: E731
    policies = [tiny.causal_lm() for _ in range(2)]
    for policy, reward in zip(policies, (by_name, tiny.letters_reward), strict=True):
        make(policy, reward, optimizer=keras.optimizers.SGD(0.1)).fit(TABLE, batch_size=8, steps_per_epoch=2, verbose=0)
    for a, b in zip(*(policy.get_weights() for policy in policies), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda completions, truth: 1 / 0, r"Received: `<lambda>\(completions, truth\)`, which needs `truth`$"),
        (
            lambda prompts, answer: 1 / 0,
            r"`<lambda>\(prompts, answer\)`, whose parameter `answer` takes the column `answer`$",
        ),
    ],
)
@pytest.mark.parametrize("method", ["fit", "evaluate"])
def test_what_it_cannot_have_is_said_before_anything_is_sampled(reward, message, method):
    trainer = make(tiny.causal_lm(), reward)
    trainer.rollout.sample_each = lambda *_: pytest.fail("sampled")
    with pytest.raises(ValueError, match=message):
        getattr(trainer, method)(TABLE, batch_size=4, verbose=0)


def letters_less_a_lot(prompts, completions):
    return [1e9 + reward for reward in tiny.letters_reward(prompts, completions)]


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        (JBOND, {"num_samples": 2, "num_anchor_samples": 3}),
        (BOND, {"n": 3, "quantiles": MonteCarlo(4), "exact_ties": True, "variance_reduction": False}),
        (BOND, {"n": 2, "quantiles": Learned(num_samples=2)}),
        (BestOfNSFT, {"n": 3}),
        (Reinforce, {"num_samples": 2}),  # whose mean is exact
    ],
)
def test_what_float32_would_tie_is_still_told_apart(algorithm, settings):
    """Rewards of 1e9 and more, whose differences are whole numbers, make the updates that their differences make."""
    trainers, logs = [], []
    for reward in (tiny.letters_reward, letters_less_a_lot):
        settings = {k: type(v).from_config(v.get_config()) if k == "quantiles" else v for k, v in settings.items()}
        optimizer = keras.optimizers.SGD(0.1)
        trainers.append(make(tiny.causal_lm(), reward, optimizer=optimizer, algorithm=algorithm, **settings))
        logs.append(trainers[-1].fit(TABLE, batch_size=8, steps_per_epoch=2, verbose=0).history)
    for a, b in zip(*(trainer.policy.get_weights() for trainer in trainers), strict=True):
        np.testing.assert_array_equal(a, b)
    for name in {"win_rate", "tie_rate"} & {*logs[0]}:
        assert logs[0][name] == logs[1][name]
        assert 0 < logs[0][name][0] < 1
    np.testing.assert_allclose(logs[1]["reward"], 1e9, rtol=1e-6)
