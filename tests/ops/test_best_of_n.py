import numpy as np
import pytest

from keras_bond.ops import (
    best_of_n_kl,
    best_of_n_log_ratio,
    best_of_n_mean_log_quantile,
    best_of_n_win_rate,
)

REFERENCE = np.array([0.3, 0.1, 0.25, 0.05, 0.2, 0.1])
REWARDS = {
    "ties": np.array([1.0, 0.0, 2.0, 0.0, 1.0, 2.0]),
    "one tie": np.array([0.0, 3.0, 3.0, 1.0, -1.0, 2.0]),
    "all tied": np.zeros(6),
    "no ties": np.array([0.5, -2.0, 0.1, 7.0, 0.3, -1.0]),
}


def quantiles(reference, rewards):
    p_less = np.array([reference[rewards < r].sum() for r in rewards])
    p_less_equal = np.array([reference[rewards <= r].sum() for r in rewards])
    return p_less, p_less_equal


def tilt(reference, rewards, n, to_numpy):
    """Best-of-n by the op under test."""
    return reference * np.exp(to_numpy(best_of_n_log_ratio(*quantiles(reference, rewards), n)).astype("float64"))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("rewards", REWARDS.values(), ids=REWARDS)
def test_log_ratio_is_best_of_n_played_out(rewards, n, to_numpy, best_of_n):
    np.testing.assert_allclose(tilt(REFERENCE, rewards, n, to_numpy), best_of_n(REFERENCE, rewards, n), rtol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_log_ratio_is_theorem_1_and_sums_to_one(n, to_numpy):
    rng = np.random.default_rng(n)
    reference, rewards = rng.dirichlet(np.ones(40)), rng.integers(0, 12, 40)
    less, less_equal = quantiles(reference, rewards)
    ours = to_numpy(best_of_n_log_ratio(less, less_equal, n))
    np.testing.assert_allclose(ours, np.log((less_equal**n - less**n) / (less_equal - less)), rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(np.sum(reference * np.exp(ours)), 1, rtol=1e-5)


@pytest.mark.parametrize(("m", "n"), [(2, 2), (2, 3), (3, 2), (4, 4)])
def test_best_of_m_of_best_of_n_is_best_of_mn(m, n, to_numpy):
    once = tilt(REFERENCE, REWARDS["ties"], n, to_numpy)
    twice = tilt(once, REWARDS["ties"], m, to_numpy)
    np.testing.assert_allclose(twice, tilt(REFERENCE, REWARDS["ties"], m * n, to_numpy), rtol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_log_ratio_at_the_ends(n, to_numpy):
    """Never seen; the one best without mass of its own; everything tied; the lowest quarter."""
    ours = to_numpy(best_of_n_log_ratio([0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.25], n))
    expected = [-np.inf if n > 1 else 0.0, np.log(n), 0.0, (n - 1) * np.log(0.25)]
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_log_ratio_stays_finite_where_the_powers_underflow(to_numpy):
    ours = to_numpy(best_of_n_log_ratio([0.0, 5e-4], [1e-3, 1e-3], 16))
    np.testing.assert_allclose(ours, 15 * np.log(1e-3) + np.array([0, np.log(2 - 2**-15)]), rtol=1e-6)


def test_log_ratio_takes_any_shape(to_numpy):
    less, less_equal = np.full((2, 3, 1), 0.25), np.full((2, 3, 1), 0.5)
    np.testing.assert_allclose(
        to_numpy(best_of_n_log_ratio(less, less_equal, 2)), np.full((2, 3, 1), np.log(0.75)), rtol=1e-6
    )


@pytest.mark.parametrize("n", [1, 2, 4, 8, 16])
def test_limits_are_the_integrals_of_the_continuous_case(n):
    """Without ties the quantile u of Best-of-n has the density n u^(n-1)."""
    u = (np.arange(200_000) + 0.5) / 200_000
    density = n * u ** (n - 1)
    assert best_of_n_win_rate(n) == pytest.approx(np.mean(u * density), rel=1e-6)
    assert best_of_n_kl(n) == pytest.approx(np.mean(density * np.log(density)), rel=1e-6, abs=1e-12)
    assert best_of_n_mean_log_quantile(n) == pytest.approx(np.mean(density * np.log(u)), rel=1e-5)


@pytest.mark.parametrize(("n", "kl"), [(2, 0.193), (4, 0.636), (8, 1.204), (16, 1.835)])
def test_kl_of_the_paper(n, kl):
    assert round(best_of_n_kl(n), 3) == kl


@pytest.mark.parametrize("rewards", REWARDS.values(), ids=REWARDS)
@pytest.mark.parametrize("n", [2, 4])
def test_kl_limit_bounds_the_kl_under_ties(rewards, n, best_of_n):
    best = best_of_n(REFERENCE, rewards, n)
    assert np.sum(best * np.log(best / REFERENCE)) < best_of_n_kl(n)


@pytest.mark.parametrize("n", [0, -1, 2.0, "2", None])
@pytest.mark.parametrize(
    "function",
    [lambda n: best_of_n_log_ratio(0.0, 1.0, n), best_of_n_win_rate, best_of_n_kl, best_of_n_mean_log_quantile],
    ids=["log_ratio", "win_rate", "kl", "mean_log_quantile"],
)
def test_n_must_be_a_positive_integer(function, n):
    with pytest.raises(ValueError) as error:
        function(n)
    assert str(error.value) == (
        f"`n` must be an integer of at least 1, the number of samples of Best-of-n. Received: n={n!r}"
    )
