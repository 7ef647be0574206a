"""Every algorithm on a problem with a known answer: where its expected gradient leads, and its sampled one."""

import math

import numpy as np
import pytest

from keras_bond import BOND, JBOND, BestOfNSFT, IterativeBOND, Reinforce
from keras_bond import tabular as t

UNTIED = np.arange(12.0)
TIED = np.array([0.0, 1, 1, 1, 2, 2, 3, 4, 4, 4, 4, 5])
REFERENCE = np.random.default_rng(0).dirichlet(np.ones(12))


def test_distributions_against_loops():
    less, less_equal = t.quantiles(REFERENCE, TIED)
    for i, r in enumerate(TIED):
        assert less[i] == pytest.approx(sum(p for p, q in zip(REFERENCE, TIED, strict=True) if q < r), abs=1e-15)
        assert less_equal[i] == pytest.approx(sum(p for p, q in zip(REFERENCE, TIED, strict=True) if q <= r), abs=1e-15)
    three = t.best_of_n(REFERENCE, TIED, 3)
    brute = np.zeros(12)
    for index in np.ndindex(12, 12, 12):
        tied = [i for i in index if TIED[i] == max(TIED[list(index)])]
        for i in tied:
            brute[i] += math.prod(REFERENCE[list(index)]) / len(tied)
    np.testing.assert_allclose(three, brute, atol=1e-14)
    np.testing.assert_allclose(
        t.best_of_n(t.best_of_n(REFERENCE, TIED, 2), TIED, 3), t.best_of_n(REFERENCE, TIED, 6), atol=1e-14
    )
    assert t.win_rate(three, REFERENCE, TIED) == pytest.approx(
        sum(
            three[i] * REFERENCE[j] * ((TIED[i] > TIED[j]) + 0.5 * (TIED[i] == TIED[j]))
            for i in range(12)
            for j in range(12)
        )
    )
    assert t.kl(three, REFERENCE) == pytest.approx(sum(p * math.log(p / q) for p, q in zip(three, REFERENCE, strict=True)))


@pytest.mark.parametrize("rewards", [UNTIED, TIED], ids=["untied", "tied"])
@pytest.mark.parametrize("n", [2, 4, 8])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_bond_reaches_the_best_of_n_distribution(n, beta, rewards):
    path = t.train(BOND, rewards, REFERENCE, n=n, beta=beta)
    figures = t.progress(path, n)
    assert figures["forward_kl"][-1] < 1e-3
    assert figures["backward_kl"][-1] < 1e-3
    assert figures["backward_kl"][0] > 0.1
    assert figures["kl"][-1] == pytest.approx(t.kl(t.best_of_n(REFERENCE, rewards, n), REFERENCE), abs=0.01)


def test_without_the_collision_factor_ties_are_not_exact():
    """The paper's r_BOND = log p_<= ends at pi_ref p_<=^(N-1): for a reward of 0 or 1, at 1/3 and 2/3, not 1/4 and 3/4."""
    rewards = np.repeat([0.0, 1.0], 6)
    paper, exact = (t.train(BOND, rewards, n=2, beta=1.0, exact_ties=exact).policies[-1] for exact in (False, True))
    np.testing.assert_allclose([paper[:6].sum(), paper[6:].sum()], [1 / 3, 2 / 3], atol=1e-4)
    np.testing.assert_allclose([exact[:6].sum(), exact[6:].sum()], [1 / 4, 3 / 4], atol=1e-4)


@pytest.mark.any_backend
def test_the_sampled_gradient_ends_within_its_noise():
    """SGD with step a and batch B hovers about a (N - 1) / B nats above the optimum, 3e-3 here; three seeds."""
    for seed in range(3):
        path = t.train(BOND, TIED, steps=150, learning_rate=2.0, batch_size=2000, seed=seed, n=4)
        figures = t.progress(path, 4)
        assert figures["forward_kl"][-50:].mean() < 4e-3
        assert figures["backward_kl"][-50:].mean() < 4e-3
        assert figures["forward_kl"][0] > 0.5


def test_iterative_bond_passes_through_powers_of_n():
    period = 300
    path = t.train(IterativeBOND, UNTIED, REFERENCE, steps=4 * period, n=2, period=period)
    for phase in range(1, 5):
        target = t.best_of_n(REFERENCE, UNTIED, 2**phase)
        assert t.kl(target, path.anchors[phase * period]) < 1e-3
        assert t.kl(path.anchors[phase * period], target) < 1e-3
        np.testing.assert_array_equal(path.anchors[phase * period - 1], path.anchors[(phase - 1) * period])


def test_reinforce_reaches_the_tilted_reference():
    path = t.train(Reinforce, TIED, REFERENCE, beta_rl=1.5)
    optimum = REFERENCE * np.exp(TIED / 1.5)
    np.testing.assert_allclose(path.policies[-1], optimum / optimum.sum(), atol=1e-4)


def test_sft_is_bond_with_beta_zero():
    sft, bond = (
        t.train(algorithm, TIED, REFERENCE, steps=50, n=4, **more)
        for algorithm, more in ((BestOfNSFT, {}), (BOND, {"beta": 0.0}))
    )
    np.testing.assert_allclose(sft.policies, bond.policies, atol=1e-12)


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        (JBOND, {"n": 2, "beta": 0.5, "gamma": 0.0}),
        (JBOND, {"n": 3, "beta": 1.0, "gamma": 1.5, "num_samples": 2}),
        (BOND, {"n": 4, "beta": 0.5, "exact_ties": True}),
        (BOND, {"n": 8, "beta": 1.0, "exact_ties": False}),
        (IterativeBOND, {"n": 2, "beta": 0.25}),
        (BestOfNSFT, {"n": 4}),
        (Reinforce, {"beta_rl": 0.5}),
        (Reinforce, {"beta_rl": 0.0, "num_samples": 3}),
    ],
)
def test_the_sampled_gradient_is_unbiased_at_a_random_policy(algorithm, settings):
    rng = np.random.default_rng(1)
    logits, anchor = rng.normal(size=(2, 12))
    exact = t.expected_gradient(algorithm, logits, anchor, TIED, **settings)
    samples = np.stack([t.sampled_gradient(algorithm, logits, anchor, TIED, 2000, rng, **settings) for _ in range(40)])
    error = samples.std(0, ddof=1) / np.sqrt(len(samples)) + 1e-6  # a completion may be too rare to be drawn
    assert np.abs((samples.mean(0) - exact) / error).max() < 4
    assert np.abs(exact / error).max() > 20  # the test has power


def test_the_expected_gradient_is_the_derivative_of_the_divergence():
    """By central differences of (1 - beta) KL(pi_BoN || pi) + beta KL(pi || pi_BoN)."""
    rng = np.random.default_rng(2)
    logits, anchor = rng.normal(size=(2, 12))
    n, beta, step = 4, 0.3, 1e-6
    target = t.best_of_n(np.exp(anchor) / np.exp(anchor).sum(), TIED, n)

    def divergence(theta):
        pi = np.exp(theta) / np.exp(theta).sum()
        return (1 - beta) * t.kl(target, pi) + beta * t.kl(pi, target)

    differences = [(divergence(logits + step * e) - divergence(logits - step * e)) / (2 * step) for e in np.eye(12)]
    gradient = t.expected_gradient(BOND, logits, anchor, TIED, n=n, beta=beta)
    np.testing.assert_allclose(gradient, differences, atol=1e-8)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_jbond_stays_near_the_frontier(beta, gamma):
    path = t.train(JBOND, np.arange(50.0), steps=400, beta=beta, gamma=gamma, eta=0.02)
    figures = t.progress(path)
    assert figures["win_rate"][-1] > 0.8
    assert np.all(figures["frontier_efficiency"][50:] > 0.85)
    assert np.all(figures["frontier_efficiency"][1:] < 1 + 1e-3)
    assert np.all(np.diff(figures["reward"]) > -1e-9)
