import itertools

import numpy as np
import pytest

from keras_bond.ops import (
    best_of_n_log_ratio,
    bond_reward,
    expected_jbond_reward,
    jbond_reward,
    monte_carlo_quantiles,
    win_rate,
)

REWARD = np.array([0.5, 0.5, -1.0, 9.0], "float32")
ANCHOR_REWARDS = np.array(
    [[0.5, 0.5, 0.1, 0.9, 0.7], [0.6, 0.7, 0.8, 0.9, 1.0], [0, 0, 0, 0, -1.0], [1, 2, 3, 4, 5]], "float32"
)
LESS, LESS_EQUAL = np.array([1, 0, 0, 5]), np.array([3, 0, 1, 5])  # counted by hand


@pytest.mark.parametrize("smoothing", [0.0, 1.0, 0.5])
def test_quantiles_are_smoothed_counts(smoothing, to_numpy):
    less, less_equal = monte_carlo_quantiles(REWARD, ANCHOR_REWARDS, smoothing)
    np.testing.assert_allclose(to_numpy(less), LESS / (5 + smoothing), rtol=1e-6)
    np.testing.assert_allclose(to_numpy(less_equal), (LESS_EQUAL + smoothing) / (5 + smoothing), rtol=1e-6)


def test_counts_are_raw_by_default(to_numpy):
    np.testing.assert_allclose(to_numpy(monte_carlo_quantiles(REWARD, ANCHOR_REWARDS)[1]), LESS_EQUAL / 5, rtol=1e-6)


def test_win_rate_counts_ties_half(to_numpy):
    np.testing.assert_allclose(to_numpy(win_rate(REWARD, ANCHOR_REWARDS)), [0.4, 0.0, 0.1, 1.0], rtol=1e-6)


def test_quantiles_take_lists_and_integers(to_numpy):
    less, less_equal = monte_carlo_quantiles([2], [[1, 2, 3]])
    np.testing.assert_allclose([to_numpy(less)[0], to_numpy(less_equal)[0]], [1 / 3, 2 / 3], rtol=1e-6)


def test_quantiles_are_unbiased_under_ties(to_numpy):
    """Raw counts over k = 3 anchor samples, averaged over 20,000 draws, against the true quantiles."""
    rng = np.random.default_rng(0)
    probabilities, support, place = np.array([0.2, 0.3, 0.4, 0.1]), np.array([-1.0, 0.0, 0.5, 2.0]), 2
    draws = rng.choice(support, size=(20_000, 3), p=probabilities)
    estimates = [to_numpy(p) for p in monte_carlo_quantiles(np.full(20_000, support[place]), draws)]
    for estimate, truth in zip(estimates, (0.5, 0.9), strict=True):
        assert abs(estimate.mean() - truth) < 4 * np.sqrt(truth * (1 - truth) / 3 / 20_000)


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
@pytest.mark.parametrize(
    "transform", [np.exp, np.arctan, lambda r: r**3, lambda r: 1000 * r - 5], ids=["exp", "atan", "cube", "line"]
)
def test_only_the_order_of_rewards_counts(transform, smoothing, to_numpy):
    def all_of(reward, anchor_rewards):
        parts = (*monte_carlo_quantiles(reward, anchor_rewards, smoothing), jbond_reward(reward, anchor_rewards))
        return np.stack([to_numpy(p) for p in parts])

    rng = np.random.default_rng(1)
    reward, anchor_rewards = rng.integers(-2, 3, 50) / 2.0, rng.integers(-2, 3, (50, 3)) / 2.0
    expected = all_of(reward, anchor_rewards)
    assert len(np.unique(expected, axis=1).T) > 5
    np.testing.assert_array_equal(all_of(transform(reward), transform(anchor_rewards)), expected)


def test_negative_smoothing_is_refused():
    with pytest.raises(ValueError, match=r"`smoothing` must be at least 0. Received: smoothing=-0.5"):
        monte_carlo_quantiles([1.0], [[1.0]], -0.5)


@pytest.mark.parametrize("function", [monte_carlo_quantiles, win_rate, jbond_reward])
@pytest.mark.parametrize("anchor_shape", [(3,), (2, 4), (3, 0), (3, 4, 1)])
def test_anchor_rewards_need_a_row_for_each_reward(function, anchor_shape):
    with pytest.raises(ValueError) as error:
        function(np.zeros(3), np.zeros(anchor_shape))
    assert str(error.value) == (
        "`anchor_rewards` must have shape (batch, k), a row of k >= 1 anchor samples for each entry of `reward`. "
        f"Received: reward.shape=(3,), anchor_rewards.shape={anchor_shape}"
    )


@pytest.mark.parametrize("function", [monte_carlo_quantiles, win_rate, jbond_reward])
def test_reward_must_be_a_vector(function):
    with pytest.raises(ValueError) as error:
        function(np.zeros((3, 1)), np.zeros((3, 2)))
    assert str(error.value) == "`reward` must have shape (batch,). Received: reward.shape=(3, 1)"


def test_bond_reward_is_the_log_quantile(to_numpy):
    np.testing.assert_allclose(to_numpy(bond_reward([0.25, 1.0, 0.0])), [np.log(0.25), 0, -np.inf], rtol=1e-6)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_bond_reward_with_the_collision_factor(n, to_numpy):
    less, less_equal = np.array([0.0, 0.2, 0.4, 0.5]), np.array([0.3, 0.25, 1.0, 0.5])
    ours = to_numpy(bond_reward(less_equal, less, n))
    np.testing.assert_allclose(ours * (n - 1), to_numpy(best_of_n_log_ratio(less, less_equal, n)), rtol=1e-6)
    powers = [sum(le ** (n - 1 - i) * ls**i for i in range(n)) for ls, le in zip(less, less_equal, strict=True)]
    np.testing.assert_allclose(ours, np.log(powers) / (n - 1), rtol=1e-5)
    # the factor that the paper drops lies between 1 (all below) and n (no collision)
    factor = (n - 1) * (ours - np.log(less_equal))
    np.testing.assert_allclose(factor[[0, 3]], [0, np.log(n)], atol=1e-5)
    assert (factor[1:3] > 0.1).all()
    assert (factor[1:3] < np.log(n)).all()


@pytest.mark.parametrize(("p_less", "n", "message"), [(None, 4, "p_less=None, n=4"), (0.5, None, "p_less=0.5, n=None")])
def test_bond_reward_needs_p_less_and_n_together(p_less, n, message):
    with pytest.raises(ValueError) as error:
        bond_reward(0.5, p_less, n)
    assert str(error.value) == f"`p_less` and `n` belong together: pass both or neither. Received: {message}"


def test_bond_reward_refuses_n_of_one():
    with pytest.raises(ValueError, match=r"`n` must be an integer of at least 2. Received: n=1"):
        bond_reward(0.5, 0.5, 1)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_jbond_reward_penalises_only_below_the_least(n, to_numpy):
    anchor_rewards = np.tile(np.linspace(0.5, 0.9, n), (4, 1))[:, ::-1]
    ours = to_numpy(jbond_reward([0.4, 0.5, 0.55, 1.0], anchor_rewards))
    np.testing.assert_allclose(ours, [-(2.0**n) * np.log(2), 0, 0, 0], rtol=1e-6)


def test_jbond_reward_for_two_is_minus_log_16(to_numpy):
    np.testing.assert_allclose(to_numpy(jbond_reward([0.0], [[1.0, 2.0]])), [-np.log(16)], rtol=1e-6)


@pytest.mark.parametrize(("n", "k"), [(2, 2), (2, 5), (3, 4)])
def test_jbond_reward_is_the_mean_over_every_choice(n, k, to_numpy):
    rng = np.random.default_rng(1)
    reward, anchor = rng.integers(0, 4, 30) / 2.0, rng.integers(0, 4, (30, k)) / 2.0
    choices = [list(chosen) for chosen in itertools.combinations(range(k), n)]
    expected = np.mean([to_numpy(jbond_reward(reward, anchor[:, chosen])) for chosen in choices], axis=0)
    np.testing.assert_allclose(to_numpy(jbond_reward(reward, anchor, n)), expected, rtol=1e-6)


def test_jbond_reward_refuses_more_than_there_are():
    with pytest.raises(ValueError) as error:
        jbond_reward([0.0], [[0.0, 1.0]], n=3)
    assert str(error.value) == "`n` must be an integer from 1 to 2, the samples per prompt. Received: n=3"


def test_jbond_reward_of_zero_is_not_minus_zero(to_numpy):
    assert not np.signbit(to_numpy(jbond_reward([1.0], [[0.0, 2.0]])))[0]


@pytest.mark.parametrize("n", [2, 3, 4])
def test_expected_jbond_reward_is_the_mean_of_jbond_reward(n, to_numpy):
    """All n-tuples of anchor samples of a distribution with a tie, for each place of y."""
    probabilities, rewards = np.array([0.1, 0.4, 0.2, 0.3]), np.array([0.0, 1.0, 1.0, 2.0])
    tuples = np.array(list(itertools.product(range(4), repeat=n)))
    weights = probabilities[tuples].prod(axis=1)
    for reward in rewards:
        drawn = to_numpy(jbond_reward(np.full(len(tuples), reward), rewards[tuples]))
        p_less_equal = probabilities[rewards <= reward].sum()
        np.testing.assert_allclose(weights @ drawn, to_numpy(expected_jbond_reward(p_less_equal, n)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_expected_jbond_reward_meets_the_log_quantile_at_a_half_and_at_one(n, to_numpy):
    p = np.array([0.5, 1.0])
    np.testing.assert_allclose(to_numpy(expected_jbond_reward(p, n)), to_numpy(bond_reward(p)), rtol=1e-6)


def test_expected_jbond_reward_is_for_two_by_default(to_numpy):
    p = np.array([0.0, 0.1, 0.7])
    np.testing.assert_allclose(to_numpy(expected_jbond_reward(p)), -np.log(16) * (1 - p) ** 2, rtol=1e-6)


def test_expected_jbond_reward_refuses_a_fraction():
    with pytest.raises(ValueError, match=r"`n` must be an integer of at least 1.* Received: n=2.5"):
        expected_jbond_reward(0.5, 2.5)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_jbond_reward_fires_once_in_n_plus_1_at_the_anchor(n, to_numpy):
    """Without ties each of the n + 1 samples is as likely to be the least: 1/3 for n = 2."""
    orders = np.array(list(itertools.permutations(range(n + 1))), "float32")
    assert np.mean(to_numpy(jbond_reward(orders[:, 0], orders[:, 1:])) < 0) == pytest.approx(1 / (n + 1), abs=1e-12)
