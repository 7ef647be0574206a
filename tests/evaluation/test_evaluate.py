"""Evaluation against enumeration: win rate, KL and reward of one tiny policy against another."""

import numpy as np
import pytest
import tiny
from keras import ops

from keras_bond.evaluation import Evaluator, best_of_n_points, evaluate
from keras_bond.ops import best_of_n_kl, frontier_win_rate, sequence_log_prob
from keras_bond.rollout import Rollout, weights_of

SIZES = {"max_prompt_length": 4, "max_completion_length": 3}


def enumerate_policy(policy):
    rollout = Rollout(policy, *SIZES.values())
    ids, mask = tiny.completions(7, 3)
    prompt = rollout.pad(rollout.encode([tiny.PROMPT] * len(ids)))
    log_prob = sequence_log_prob(rollout.score(weights_of(policy), *prompt, ids), mask)
    texts = rollout.decode(type("C", (), {"token_ids": ids, "mask": mask}))
    rewards = np.array(tiny.letters_reward(None, texts))
    return ops.convert_to_numpy(log_prob).astype("float64"), rewards, mask.sum(1), mask.all(1) & (ids[:, -1] != 1)


def test_estimates_agree_with_enumeration():
    policy, reference = tiny.causal_lm(seed=1), tiny.causal_lm(seed=1)
    tiny.perturb(policy, np.random.default_rng(2), 0.2)
    log_p, rewards, lengths, truncated = enumerate_policy(policy)
    log_q, *_ = enumerate_policy(reference)
    p, q = np.exp(log_p), np.exp(log_q)
    wins = (rewards[:, None] > rewards) + 0.5 * (rewards[:, None] == rewards)
    exact = {
        "reward": p @ rewards,
        "reference_reward": q @ rewards,
        "win_rate": p @ wins @ q,
        "kl": p @ (log_p - log_q),
        "completion_length": p @ lengths,
        "truncated": p @ truncated,
    }
    count = 700  # not a multiple of the batch
    result = evaluate(
        policy, reference, tiny.letters_reward, [tiny.PROMPT] * count, num_samples=4, batch_size=256, seed=3, **SIZES
    )
    for name, value in exact.items():
        estimate = result.estimates[name]
        standard_error = (estimate.high - estimate.low) / (2 * 1.96)
        assert abs(estimate.value - value) < 4 * standard_error, name
        assert 0 < standard_error < 0.1
        assert estimate.low < estimate.value < estimate.high
    assert result.samples.rewards.shape == (count, 4)
    assert len(result.reference_samples.texts[0]) == count
    win_rate, kl = result.estimates["win_rate"].value, result.estimates["kl"].value
    efficiency = (win_rate - 0.5) / (float(frontier_win_rate(kl)) - 0.5)
    assert result.estimates["frontier_efficiency"].value == pytest.approx(efficiency, rel=1e-4)


def test_the_exact_kl_has_less_variance_than_the_log_ratio():
    policy, reference = tiny.causal_lm(seed=1), tiny.causal_lm(seed=1)
    tiny.perturb(policy, np.random.default_rng(2), 0.1)
    log_p, *_ = enumerate_policy(policy)
    log_q, *_ = enumerate_policy(reference)
    p = np.exp(log_p)
    spread = np.sqrt(p @ (log_p - log_q) ** 2 - (p @ (log_p - log_q)) ** 2)
    result = evaluate(policy, reference, tiny.letters_reward, [tiny.PROMPT] * 256, batch_size=256, **SIZES)
    assert result.samples.kl.std() < 0.7 * spread


def test_a_policy_against_itself_and_its_snapshot():
    policy = tiny.causal_lm(seed=4)
    evaluator = Evaluator(policy, None, tiny.letters_reward, ["ab", "c", "ba"] * 40, batch_size=60, **SIZES)
    first = evaluator()
    assert first.estimates["kl"].value == pytest.approx(0, abs=1e-6)
    assert first.estimates["win_rate"].low < 0.5 < first.estimates["win_rate"].high
    tiny.perturb(policy, np.random.default_rng(5), 0.3)
    assert evaluator().estimates["kl"].value > 0.01  # the reference stayed where it was
    for a, b in zip(evaluator().samples, evaluator().samples, strict=True):  # the same numbers each time
        np.testing.assert_array_equal(a, b)


def test_best_of_n_points_are_exact_on_the_samples():
    rewards = np.array([[0.0, 1.0, 1.0, 2.0]])
    points = best_of_n_points(rewards, ns=(2, 3))
    # all pairs and the two others: (0,1):1,2 (0,1'):1',2 (0,2):1,1' (1,1'):0,2 (1,2):0,1' (1',2):0,1
    wins = np.mean([0.25, 0.25, 1.0, 0.5, 1.0, 1.0])
    assert points[0] == {"n": 2, "win_rate": pytest.approx(wins), "reward": pytest.approx(1.5), "kl": best_of_n_kl(2)}
    assert points[1]["win_rate"] == pytest.approx(np.mean([0.0, 1.0, 1.0, 1.0]))
    with pytest.raises(ValueError, match=r"Best-of-4 needs more than 4 samples per prompt. Received: 4"):
        best_of_n_points(rewards, ns=(4,))


def test_errors():
    with pytest.raises(ValueError, match=r"`num_samples` must be an integer of at least 1. Received: num_samples=0"):
        evaluate(tiny.causal_lm(), tiny.causal_lm(), tiny.letters_reward, ["ab"], num_samples=0, **SIZES)
    with pytest.raises(ValueError, match="`prompts` is empty"):
        evaluate(tiny.causal_lm(), tiny.causal_lm(), tiny.letters_reward, [], **SIZES)
