"""How a prompt's rewards compare, in float32 what they were in float64: against counting."""

import keras
import numpy as np
import pytest

from keras_bond.ops import best_of_n_weights
from keras_bond.rewards import RewardError, compare, differences, imitated, ranks

RNG = np.random.default_rng(0)
REWARDS = RNG.integers(0, 4, (6, 5)).astype("float64")
SCALES = {
    "small": lambda r: r,
    "1e9 and more": lambda r: 1e9 + r,
    "below float32": lambda r: 1e-300 * r,
    "beyond float32": lambda r: 1e300 * (r - 1.5),
    "one ulp apart": lambda r: 1 + r * np.finfo("float64").eps,
    "-inf is the lowest": lambda r: np.where(r == 0, -np.inf, r),
    "inf is the highest": lambda r: np.where(r == 3, np.inf, r),
}


NAN = float("nan")
ABSTAINED = np.where(RNG.random((40, 5)) < 0.5, NAN, RNG.integers(0, 3, (40, 5)))


def counted(rewards):
    return [[sum(other < reward for other in row) for reward in row] for row in rewards]


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_ranks_count_the_samples_that_are_worse(scale):
    ours = ranks(scale(REWARDS))
    assert ours.dtype == "float32"
    np.testing.assert_array_equal(ours, counted(REWARDS))


def test_ranks_are_among_those_that_have_a_reward():
    expected = np.where(np.isnan(ABSTAINED), NAN, counted(np.where(np.isnan(ABSTAINED), np.inf, ABSTAINED)))
    np.testing.assert_array_equal(ranks(ABSTAINED), expected)


def test_differences_are_from_the_mean_of_those_that_have_a_reward():
    ours = differences(np.array([[1.0, NAN, 4.0], [NAN, 2.0, NAN], [NAN, NAN, NAN], [1.0, 2.0, 6.0]]))
    alone = [NAN, NAN, NAN]  # with nothing to differ from
    np.testing.assert_array_equal(ours, [[-1.5, NAN, 1.5], alone, alone, [-2.0, -1.0, 3.0]])


def test_differences_keep_what_float32_would_round_away():
    ours = differences(1e9 + REWARDS / 8)
    assert ours.dtype == "float32"
    expected = REWARDS / 8 - REWARDS.mean(axis=1, keepdims=True) / 8
    np.testing.assert_allclose(ours, expected, atol=4 * 1e9 * np.finfo("float64").eps)  # of the mean of float64s near 1e9


@pytest.mark.parametrize(("low", "high"), [(-np.inf, 0.0), (0.0, np.inf), (-np.inf, np.inf), (-1e300, 1e300), (0.0, 1e39)])
def test_values_that_are_not_finite_are_refused_where_values_are_needed(low, high):
    with pytest.raises(RewardError) as error:
        differences(np.array([[0.0, 0.0], [low, high]]))
    assert str(error.value) == (
        "The values of the rewards are used, not their order alone: they must be finite, and closer together than float32 "
        f"can tell, 3e38. Received: rewards from {low} to {high}"
    )


@pytest.mark.parametrize(("m", "k"), [(1, 2), (2, 3), (3, 0)])
def test_rewards_are_compared_within_their_prompt(m, k):
    own, anchor = RNG.integers(0, 3, (4, m)), RNG.integers(0, 3, (4, k))
    ours = compare(1e9 + np.concatenate([own.ravel(), anchor.ravel()]), m, k)
    assert {values.dtype for values in ours.values()} == {np.dtype("float32")}
    np.testing.assert_array_equal(ours["reward"], np.float32(1e9 + own.ravel()))
    np.testing.assert_array_equal(ours["anchor_rewards"], np.repeat(np.float32(1e9 + anchor), m, axis=0))
    expected = np.array(counted(np.concatenate([own, anchor], axis=1)))
    np.testing.assert_array_equal(ours["relative_reward"], expected[:, :m].ravel())
    np.testing.assert_array_equal(ours["relative_anchor_rewards"], np.repeat(expected[:, m:], m, axis=0))


def test_what_is_imitated():
    rows, weights = imitated(REWARDS, 2)
    assert rows.tolist() == [*range(30)]
    np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (weights, best_of_n_weights(REWARDS, 2))))
    rows, weights = imitated(REWARDS, 3, every=False)
    assert rows.tolist() == [5 * i + max(range(3), key=lambda j: (row[j], -j)) for i, row in enumerate(REWARDS)]
    np.testing.assert_array_equal(weights, np.ones((6, 1)))
    rows, weights = imitated(REWARDS[:, :0], 0)
    assert (rows.size, weights.shape) == (0, (6, 0))


def test_what_is_imitated_has_a_reward():
    rows, weights = imitated(ABSTAINED, 2, every=False)
    for i, row in enumerate(ABSTAINED):
        first = np.flatnonzero(~np.isnan(row))[:2]
        if len(first) == 2:
            assert rows[i] == 5 * i + max(first, key=lambda j: (row[j], -j))
            assert weights[i] == 1
        else:
            assert np.isnan(weights[i])
    assert 0.1 < np.isnan(weights).mean() < 0.5  # both are there
