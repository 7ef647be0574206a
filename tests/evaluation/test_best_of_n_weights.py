"""The best of n of k samples against every choice of n of them."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
from keras import ops

from keras_bond.evaluation import best_of_n_points
from keras_bond.evaluation.best_of_n import backward_kl, forward_kl, quantiles
from keras_bond.ops import best_of_n_kl, best_of_n_weights

RNG = np.random.default_rng(0)
REWARDS = {
    "ties": RNG.integers(0, 3, (5, 6)).astype("float32"),
    "no ties": RNG.standard_normal((5, 6)).astype("float32"),
    "all equal": np.zeros((2, 6), "float32"),
}


def choices(rewards, n):
    """Every choice of n places, as an array, for one row of rewards: (chosen, others)."""
    places = np.arange(len(rewards))
    for chosen in itertools.combinations(places, n):
        yield np.array(chosen), np.setdiff1d(places, chosen)


@pytest.mark.parametrize("rewards", REWARDS.values(), ids=REWARDS)
@pytest.mark.parametrize("n", [1, 2, 4, 6])
def test_weights_agree_with_every_choice(rewards, n):
    weights = ops.convert_to_numpy(best_of_n_weights(rewards, n))
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    for row, row_weights in zip(rewards, weights, strict=True):
        expected = np.zeros(len(row))
        drawn = [chosen for chosen, _ in choices(row, n)]
        for chosen in drawn:
            best = chosen[row[chosen] == row[chosen].max()]
            expected[best] += 1 / len(best) / len(drawn)
        # every choice splits its win among the best it holds; over all choices that is the same among all equals
        np.testing.assert_allclose(row_weights, expected, atol=1e-6)


@pytest.mark.parametrize("n", [0, 7, 2.0, True + 0.5])
def test_an_n_that_cannot_be_drawn_is_refused(n):
    with pytest.raises(ValueError) as error:
        best_of_n_weights(REWARDS["ties"], n)
    assert str(error.value) == f"`n` must be an integer from 1 to 6, the samples per prompt. Received: n={n!r}"


@pytest.mark.parametrize("rewards", REWARDS.values(), ids=REWARDS)
@pytest.mark.parametrize("n", [1, 2, 4])
def test_points_agree_with_every_choice(rewards, n):
    wins, bests = [], []
    for row in rewards.astype("float64"):
        for chosen, others in choices(row, n):
            bests.append(row[chosen].max())
            wins.append(np.mean((bests[-1] > row[others]) + 0.5 * (bests[-1] == row[others])))
    expected = {"n": n, "win_rate": np.mean(wins), "reward": np.mean(bests), "kl": best_of_n_kl(n)}
    assert best_of_n_points(rewards, ns=[n]) == [pytest.approx(expected, rel=1e-5, abs=1e-6)]


def test_points_of_those_that_have_a_reward():
    rewards = np.where(RNG.random((12, 6)) < 0.6, np.nan, RNG.integers(-1, 3, (12, 6)))
    n, wins, bests = 2, [], []
    for row in rewards:
        row = row[~np.isnan(row)]
        if len(row) > n:
            won = [[np.mean([(max(row[c]) > row[j]) + 0.5 * (max(row[c]) == row[j]) for c, o in choices(row, n) if j in o])]
                   for j in range(len(row))]  # fmt: skip
            wins.append(np.mean(won))
        if len(row) >= n:
            bests.append(np.mean([max(row[chosen]) for chosen, _ in choices(row, n)]))
    assert 0 < len(wins) < len(bests) < len(rewards)
    expected = {"n": n, "win_rate": np.mean(wins), "reward": np.mean(bests), "kl": best_of_n_kl(n)}
    assert best_of_n_points(rewards, ns=[n]) == [pytest.approx(expected, rel=1e-5)]


def test_points_of_rewards_with_minus_infinity():
    ours = best_of_n_points(np.array([[-np.inf, 0.0, 1.0], [2.0, 3.0, -np.inf]]), ns=[2])[0]
    assert (ours["win_rate"], ours["reward"]) == (pytest.approx(2 / 3), pytest.approx((2 / 3 + 3 - 1 / 3) / 2))


def test_points_need_an_opponent():
    with pytest.raises(ValueError, match=r"^Best-of-4 needs more than 4 samples per prompt. Received: 4$"):
        best_of_n_points(np.zeros((1, 4)), ns=(4,))


def test_quantiles_count_within_the_prompt():
    p_less, p_less_equal = quantiles(np.array([[0.0, 1.0, 9.0], [0.0, 5.0, 6.0]]), np.array([[1.0, 0.0], [5.0, 5.0]]), 1.0)
    np.testing.assert_allclose(p_less, np.array([[0, 1, 2], [0, 0, 2]]) / 3)
    np.testing.assert_allclose(p_less_equal, np.array([[2, 3, 3], [1, 3, 3]]) / 3)


def log_ratio(below, up_to, total, n):
    return math.log(sum(below ** (i - 1) * up_to ** (n - i) for i in range(1, n + 1)) / total ** (n - 1))


@pytest.mark.parametrize("rewards", REWARDS.values(), ids=REWARDS)
def test_both_kls_by_counting(rewards):
    n = 3
    rng = np.random.default_rng(1)
    count, k = rewards.shape
    log_probs, reference_log_probs, kl = (rng.standard_normal((count, k)) for _ in range(3))
    reference = SimpleNamespace(rewards=rewards, log_probs=log_probs, reference_log_probs=reference_log_probs)
    samples = SimpleNamespace(rewards=rewards[:, ::-1] + np.arange(k, dtype="float32") % 2, kl=kl)
    forward, backward = np.zeros(count), np.zeros(count)
    for i, row in enumerate(rewards):
        drawn = [chosen for chosen, _ in choices(row, n)]
        for chosen in drawn:
            best = chosen[row[chosen] == row[chosen].max()]
            for j in best:
                others = np.delete(row, j)
                ratio = log_ratio((others < row[j]).sum(), (others <= row[j]).sum() + 1, k, n)
                forward[i] += (ratio + reference_log_probs[i, j] - log_probs[i, j]) / len(best) / len(drawn)
        for j, reward in enumerate(samples.rewards[i]):
            backward[i] += (kl[i, j] - log_ratio((row < reward).sum(), (row <= reward).sum() + 1, k + 1, n)) / k
    np.testing.assert_allclose(forward_kl(reference, n), forward, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(backward_kl(samples, reference, n), backward, rtol=1e-5, atol=1e-5)
