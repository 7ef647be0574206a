import numpy as np
import pytest

from keras_bond.ops import (
    best_of_n_kl,
    best_of_n_win_rate,
    frontier_efficiency,
    frontier_kl,
    frontier_win_rate,
    kl_efficiency,
)

NODES, WEIGHTS = np.polynomial.legendre.leggauss(400)
NODES, WEIGHTS = (NODES + 1) / 2, WEIGHTS / 2  # on [0, 1]


def tilt(c):
    """(win rate, KL) of f_c(u) = c e^(cu) / (e^c - 1), by Gauss-Legendre integration."""
    log_density = np.log(c) + c * (NODES - 1) - np.log(-np.expm1(-c))
    density = np.exp(log_density) * WEIGHTS
    return density @ NODES, density @ log_density


def solve(index, target):
    """The tilt whose win rate (0) or KL (1) is `target`, by bisection."""
    low, high = 1e-6, 5000.0
    for _ in range(200):
        middle = np.sqrt(low * high)
        low, high = (middle, high) if tilt(middle)[index] < target else (low, middle)
    return low


KLS = np.array([1e-6, 1e-4, 0.01, 0.0394, 0.04, 0.0405, 0.041, 0.09, 0.14, 0.193, 0.636, 1.2, 2.0, 3.5, 6.0])
TILTS = np.array([solve(1, kl) for kl in KLS])
WIN_RATES = np.array([tilt(c)[0] for c in TILTS])


def test_oracle_integrates_to_the_closed_form():
    c = np.array([0.5, 3.0, 40.0, 700.0])
    win_rate = 1 / (1 - np.exp(-c)) - 1 / c
    closed = np.stack([win_rate, np.log(c / np.expm1(c)) + c * win_rate])
    np.testing.assert_allclose(np.array([tilt(x) for x in c]).T, closed, rtol=1e-10)


def test_win_rate_at_a_kl(to_numpy):
    ours = to_numpy(frontier_win_rate(KLS))
    np.testing.assert_allclose(ours, WIN_RATES, rtol=1e-6)
    np.testing.assert_allclose(ours - 0.5, WIN_RATES - 0.5, rtol=1e-5, atol=6e-8)  # a float32 win rate steps by 6e-8


def test_kl_at_a_win_rate(to_numpy):
    rounded = WIN_RATES.astype("float32").astype("float64")
    exact = np.array([tilt(solve(0, w))[1] for w in rounded])
    # d KL / d win_rate = c, and a float32 win rate steps by 6e-8
    assert (np.abs(to_numpy(frontier_kl(rounded)) - exact) <= 1e-5 * exact + 6e-8 * TILTS).all()


def test_there_and_back(to_numpy):
    back = to_numpy(frontier_kl(frontier_win_rate(KLS)))
    assert (np.abs(back - KLS) <= 1e-5 * KLS + 1.2e-7 * TILTS).all()


@pytest.mark.parametrize(("function", "grid"), [(frontier_win_rate, (0.035, 0.045)), (frontier_kl, (0.56, 0.6))])
def test_frontier_rises_where_series_and_closed_form_meet(function, grid, to_numpy):
    assert (np.diff(to_numpy(function(np.linspace(*grid, 201)))) > 0).all()


def test_nothing_is_free(to_numpy):
    np.testing.assert_array_equal(to_numpy(frontier_win_rate([0.0, -1e-3, -2.0])), [0.5, 0.5, 0.5])
    np.testing.assert_array_equal(to_numpy(frontier_kl([0.5, 0.3, 0.0])), [0.0, 0.0, 0.0])


def test_shape_is_kept(to_numpy):
    assert to_numpy(frontier_win_rate(np.ones((1, 3)))).shape == (1, 3)
    assert to_numpy(frontier_kl(0.75)).shape == ()


@pytest.mark.parametrize(("n", "efficiency"), [(2, 0.95), (4, 0.99), (16, 1.00)])
def test_efficiency_of_best_of_n(n, efficiency, to_numpy):
    win_rate, kl = best_of_n_win_rate(n), best_of_n_kl(n)
    ours = float(to_numpy(frontier_efficiency(win_rate, kl)))
    assert ours == pytest.approx((win_rate - 0.5) / (tilt(solve(1, kl))[0] - 0.5), rel=1e-5)
    assert round(ours, 2) == efficiency
    assert ours < 1


@pytest.mark.parametrize(("win_rate", "kl"), [(0.74, 1.3), (2 / 3, 0.2), (0.9, 9.8)])
def test_kl_efficiency_is_the_share_of_the_kl_that_was_needed(win_rate, kl, to_numpy):
    ours = to_numpy(kl_efficiency(win_rate, kl))
    np.testing.assert_allclose(ours, tilt(solve(0, win_rate))[1] / kl, rtol=1e-5)


def test_policies_on_the_frontier_are_efficient(to_numpy):
    np.testing.assert_allclose(to_numpy(frontier_efficiency(WIN_RATES[2:], KLS[2:])), 1, rtol=1e-5)
    np.testing.assert_allclose(to_numpy(kl_efficiency(WIN_RATES[2:], KLS[2:])), 1, rtol=2e-5)


def test_no_density_beats_the_frontier(to_numpy):
    """Piecewise constant densities of the quantile: random ones, and tilts, which come within 1e-4."""
    cells, rng = 64, np.random.default_rng(0)
    centre = (np.arange(cells) + 0.5) / cells
    sharpness = np.geomspace(0.02, 5, 300)[:, None]
    random = np.cumsum(rng.normal(size=(300, cells)), axis=1) * sharpness
    tilted = np.geomspace(0.05, 8, 50)[:, None] * centre
    logits = np.concatenate([random, tilted])
    mass = np.exp(logits - logits.max(axis=1, keepdims=True))
    mass /= mass.sum(axis=1, keepdims=True)
    kl = np.sum(mass * np.log(np.maximum(mass, 1e-300) * cells), axis=1)
    slack = to_numpy(frontier_win_rate(kl)) - mass @ centre
    assert (slack > -2e-7).all()
    assert (slack[300:] < 1e-4).all()
    assert (slack[:300] > 1e-3).any()
