"""Best-of-N sampling against enumeration, and what must not depend on how its rows are batched."""

import functools
import weakref

import numpy as np
import pytest
import tiny
from keras import ops

import keras_bond
from keras_bond import BestOfNSampler
from keras_bond.ops import best_of_n_log_ratio, sequence_log_prob
from keras_bond.rewards import RewardError
from keras_bond.rollout import Completions, Rollout, weights_of

SIZES = {"max_prompt_length": 16, "max_completion_length": 3}
PROMPTS = ["ab", "c", "bca", "aab", "cc"]


@functools.cache
def shared_rollout(seed=0):
    """One policy, compiled once for all tests that leave its weights alone."""
    return Rollout(tiny.causal_lm(seed=seed), *SIZES.values())


def sampler_of(reward=tiny.letters_reward, n=3, rollout=None, **kwargs):
    rollout = rollout or shared_rollout()
    return BestOfNSampler(rollout.causal_lm, reward, n, rollout=rollout, **{"batch_size": 8, **kwargs})


def assert_same(a, b):
    assert a.completions == b.completions
    assert a.candidates == b.candidates
    np.testing.assert_array_equal(a.rewards, b.rewards)
    np.testing.assert_array_equal(a.candidate_rewards, b.candidate_rewards)


def enumerate_best_of_n(rollout, prompt, n):
    """By text: the probability of being the best of n, and the win rate against one sample, ties half."""
    ids, mask = tiny.completions(7, 3)
    log_probs = rollout.score(weights_of(rollout.causal_lm), *rollout.pad(rollout.encode([prompt] * len(ids))), ids)
    p = np.exp(ops.convert_to_numpy(sequence_log_prob(log_probs, mask)).astype("float64"))
    texts = rollout.decode(Completions(ids, mask, None))
    rewards = np.array(tiny.letters_reward(None, texts))
    p_less, p_less_equal = (rewards < rewards[:, None]) @ p, (rewards <= rewards[:, None]) @ p
    best = p * np.exp(ops.convert_to_numpy(best_of_n_log_ratio(p_less, p_less_equal, n)))
    probability = dict.fromkeys(texts, 0.0)
    for text, value in zip(texts, best, strict=True):  # special tokens are no text: several completions may share one
        probability[text] += value
    return probability, dict(zip(texts, (p_less + p_less_equal) / 2, strict=True))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_best_has_the_distribution_of_theorem_1(n):
    prompts, count = ["ab", "bcc"], 2000
    result = sampler_of(n=n, batch_size=512, seed=n).generate(prompts * count, verbose=0)
    assert result.rewards.tolist() == tiny.letters_reward(None, result.completions)
    expected = [enumerate_best_of_n(shared_rollout(), prompt, n) for prompt in prompts]
    assert sum(abs(expected[0][0][text] - expected[1][0][text]) for text in expected[0][0]) > 0.1  # the prompts differ
    for i, (probability, wins) in enumerate(expected):
        completions = result.completions[i :: len(prompts)]
        q = np.array(list(probability.values()))
        np.testing.assert_allclose(q.sum(), 1, atol=1e-5)
        observed = np.array([completions.count(text) for text in probability])
        assert observed.sum() == count
        frequent = count * q > 20
        z = (observed - count * q)[frequent] / np.sqrt(count * q * (1 - q))[frequent]
        assert frequent.sum() > 10
        assert np.abs(z).max() < 4
        assert abs(np.sum(z**2) - frequent.sum()) < 4 * np.sqrt(2 * frequent.sum())
        won = np.array([wins[text] for text in completions])
        exact = q @ np.array([wins[text] for text in probability])
        assert abs(won.mean() - exact) < 4 * won.std() / np.sqrt(count)


@pytest.mark.parametrize("reward", [tiny.letters_reward, lambda prompts, completions: [0.0] * len(completions)])
def test_the_best_is_the_first_of_the_best_candidates(reward):
    result = sampler_of(reward, n=7).generate(PROMPTS, keep_candidates=True, verbose=0)
    assert [len(row) for row in result.candidates] == [7] * len(PROMPTS)
    assert result.rewards.shape == (len(PROMPTS),)
    assert result.candidate_rewards.shape == (len(PROMPTS), 7)
    assert result.rewards.dtype == result.candidate_rewards.dtype == "float64"
    for i, row in enumerate(result.candidates):
        assert len(set(row)) > 1
        assert result.candidate_rewards[i].tolist() == reward(None, row)
        first = int(np.argmax(result.candidate_rewards[i]))
        assert (result.completions[i], result.rewards[i]) == (row[first], result.candidate_rewards[i, first])
    lean = sampler_of(reward, n=7).generate(PROMPTS, verbose=0)
    assert lean.candidates is lean.candidate_rewards is None
    assert (lean.completions, lean.rewards.tolist()) == (result.completions, result.rewards.tolist())


@pytest.mark.parametrize("batch_size", [2, 8])
def test_what_abstains_is_not_among_the_best_and_minus_infinity_is(batch_size):
    nan, lowest = float("nan"), -float("inf")
    answers = [
        [None, 1.0, 3.0, None, 3.0],  # the first of the best that have one
        [None, lowest, None, lowest, None],
        [lowest, lowest, -1e300, None, lowest],
        [None] * 5,  # the first, for want of a better one
        [2**53 + 1.0, float(2**53), 2**53 + 2.0, None, 0.0],
    ]
    asked = iter(answer for row in answers for answer in row)
    reward = lambda completions: [next(asked) for _ in completions]  # noqa: E731
    result = sampler_of(reward, n=5, batch_size=batch_size).generate(PROMPTS, keep_candidates=True, verbose=0)
    assert result.completions == [row[i] for row, i in zip(result.candidates, [2, 1, 2, 0, 2], strict=True)]
    np.testing.assert_array_equal(result.rewards, [3.0, lowest, -1e300, nan, 2**53 + 2.0])
    np.testing.assert_array_equal(result.candidate_rewards, np.array(answers, "float64"))


def test_the_batch_size_changes_nothing_but_the_batches():
    calls = []

    def reward(prompts, completions):
        calls.append(len(completions))
        return tiny.letters_reward(prompts, completions)

    def generate(prompts, n, batch_size):
        calls.clear()
        return sampler_of(reward, n, batch_size=batch_size).generate(prompts, keep_candidates=True, verbose=0)

    whole = generate(PROMPTS, 3, 32)
    assert calls == [15]
    assert_same(generate(PROMPTS, 3, 4), whole)
    assert calls == [4, 4, 4, 3]  # without what fills up the last batch
    one = generate(["ab"], 20, 8)
    assert calls == [8, 8, 4]
    assert_same(generate(["ab"], 20, 32), one)
    assert calls == [20]


def test_one_program_for_every_n_and_call_and_the_present_weights():
    policy, other = tiny.causal_lm(seed=0), shared_rollout(seed=1)
    sampler = BestOfNSampler(policy, tiny.letters_reward, 2, batch_size=8, seed=7, **SIZES)
    more = sampler_of(n=5, seed=7, rollout=sampler.rollout)
    prompts = [*PROMPTS, "abc" * 3]  # the last would be wider than a batch without it
    before = [s.generate(prompts, verbose=0) for s in (sampler, more)]
    for variable, value in zip(policy.trainable_variables, other.causal_lm.trainable_variables, strict=True):
        variable.assign(value)
    after = [s.generate(prompts, verbose=0) for s in (sampler, more)]
    assert sampler.rollout._sample.traces <= 1  # Torch compiles nothing
    for n, *results in zip((2, 5), before, after, strict=True):
        fresh = sampler_of(n=n, seed=7, rollout=other)
        assert fresh.generate(prompts, verbose=0).completions != results[0].completions
        assert_same(fresh.generate(prompts, verbose=0), results[1])


def test_the_settings_reach_the_rollout():
    sampler = BestOfNSampler(tiny.causal_lm(), tiny.letters_reward, 2, temperature=0.7, stop_token_ids=(1, 4), **SIZES)
    rollout = sampler.rollout
    settings = (rollout.max_prompt_length, rollout.max_completion_length, rollout.temperature, rollout.stop_token_ids)
    assert settings == (16, 3, 0.7, (1, 4))


def test_columns_reach_the_reward_beside_their_prompts():
    table = {"prompt": PROMPTS, "wanted": [f"for {prompt}" for prompt in PROMPTS]}

    def reward(prompts, completions, wanted):
        assert wanted == [f"for {prompt}" for prompt in prompts]
        return [float(PROMPTS.index(prompt)) for prompt in prompts]

    result = sampler_of(reward).generate(table, keep_candidates=True, verbose=0)
    np.testing.assert_array_equal(result.candidate_rewards, np.repeat(np.arange(5.0)[:, None], 3, axis=1))


def test_tokens_reach_the_reward_beside_their_text():
    rollout, calls = shared_rollout(), []

    def reward(completions, completion_ids):
        calls.append(len(completions))
        ids = np.zeros((len(completions), 3), "int32")
        mask = np.array([[i < len(row) for i in range(3)] for row in completion_ids])
        ids[mask] = [token for row in completion_ids for token in row]
        assert rollout.decode(Completions(ids, mask, None)) == completions
        assert all(len(row) == 3 or row[-1] == 1 for row in completion_ids)
        return tiny.letters_reward(None, completions)

    sampler_of(reward).generate(PROMPTS, verbose=0)
    assert calls == [8, 7]


def test_a_reward_that_lacks_a_column_is_refused_before_anything_is_sampled(monkeypatch):
    monkeypatch.setattr(Rollout, "sample", lambda *_: pytest.fail("sampled"))
    with pytest.raises(ValueError, match=r"Received: `<lambda>\(completions, answer\)`, which needs `answer`$"):
        sampler_of(lambda completions, answer: 0).generate(PROMPTS, verbose=0)


def test_random_numbers_depend_on_the_seed_and_the_call():
    sampler, twin = (sampler_of(n=4, seed=5) for _ in range(2))
    results = [s.generate(PROMPTS, keep_candidates=True, verbose=0) for s in (sampler, sampler, twin, twin)]
    assert_same(results[0], results[2])
    assert_same(results[1], results[3])
    assert results[0].candidates != results[1].candidates
    assert sampler_of(n=4, seed=6).generate(PROMPTS, True, 0).candidates != results[0].candidates


def test_a_failed_call_does_not_count():
    calls = []

    def fails_once(prompts, completions):
        calls.append(completions)
        if len(calls) == 2:
            raise RuntimeError("the judge is away")
        return tiny.letters_reward(prompts, completions)

    sampler = sampler_of(fails_once)
    with pytest.raises(RewardError, match="`fails_once` raised RuntimeError: the judge is away"):
        sampler.generate(PROMPTS, verbose=0)
    assert_same(sampler.generate(PROMPTS, verbose=0), sampler_of().generate(PROMPTS, verbose=0))


@pytest.mark.parametrize("keep_candidates", [False, True])
def test_memory_does_not_grow_with_n(monkeypatch, keep_candidates):
    """Counts the candidates alive whenever the reward is called."""
    alive, most = set(), []

    class Text(str):
        pass

    decode = Rollout.decode

    def counted(self, completions):
        texts = [Text(text) for text in decode(self, completions)]
        for text in texts:
            alive.add(id(text))
            weakref.finalize(text, alive.discard, id(text))
        return texts

    def reward(prompts, completions):
        most.append(len(alive))
        return tiny.letters_reward(prompts, completions)

    monkeypatch.setattr(Rollout, "decode", counted)
    sampler_of(reward, n=128).generate(["ab"], keep_candidates, verbose=0)
    assert len(most) == 16
    if keep_candidates:
        assert most[-1] == 128
    else:
        assert max(most) <= 2 * 8 + 1  # this batch, the last one, and the best


def test_the_progress_bar_counts_batches(capsys):
    sampler = sampler_of()
    sampler.generate(PROMPTS, verbose=0)
    assert capsys.readouterr().out == ""
    sampler.generate(PROMPTS)
    assert "2/2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, r"`n` must be an integer of at least 1. Received: n=0"),
        ({"n": 2.0}, r"`n` must be an integer of at least 1. Received: n=2.0"),
        ({"batch_size": 0}, r"`batch_size` must be an integer of at least 1. Received: batch_size=0"),
        ({"temperature": 0.0}, "`temperature` must be above 0"),
        ({"policy": "gemma"}, "must be a KerasHub `CausalLM`"),
        ({"reward": None}, "`reward` must be a callable"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        BestOfNSampler(**{"policy": tiny.causal_lm(), "reward": tiny.letters_reward, "n": 2, **SIZES, **change})


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "`prompts` is empty"),
        ("ab", "must be a collection of str, not one str"),
        (["ab", "abc" * 6], "Prompt 1 has 19 tokens .* more than `max_prompt_length`=16"),
    ],
)
def test_bad_prompts(prompts, message):
    with pytest.raises(ValueError, match=message):
        sampler_of().generate(prompts, verbose=0)


def test_it_is_a_public_name():
    assert "BestOfNSampler" in dir(keras_bond)
