"""On a tabular softmax policy over five sequences, two of them tied: losses against exact gradients of the divergences."""

import itertools

import numpy as np
import pytest
from keras import ops

from keras_bond.ops import (
    backward_kl_loss,
    best_of_n_weights,
    bond_reward,
    forward_kl_loss,
    jeffreys_loss,
    kl_loss,
)

REWARDS = np.array([1.0, 0.0, 1.0, 3.0, 2.0])
POLICY_LOGITS = np.array([0.4, -0.3, 0.9, -1.0, 0.2])
ANCHOR_LOGITS = np.array([-0.5, 0.8, 0.1, 0.3, -0.2])


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


def kl(p, q):
    return np.sum(p * np.log(p / q))


def central_difference(f, x, step=1e-5):
    return np.array([(f(x + step * e) - f(x - step * e)) / (2 * step) for e in np.eye(len(x))])


ANCHOR = softmax(ANCHOR_LOGITS)
P_LESS = np.array([ANCHOR[REWARDS < r].sum() for r in REWARDS])
P_LESS_EQUAL = np.array([ANCHOR[REWARDS <= r].sum() for r in REWARDS])


def over_pairs(loss, logits):
    """The expectation of a loss of (log_prob, rows) over all i.i.d. batches of two samples; no gradient in the weights."""
    p = softmax(logits)

    def expected(x):
        log_prob = ops.log_softmax(x)
        return sum(
            p[i] * p[j] * loss(ops.stack([log_prob[i], log_prob[j]]), [i, j])
            for i, j in itertools.product(range(len(p)), repeat=2)
        )

    return expected


@pytest.mark.parametrize("n", [2, 3, 4])
def test_forward_loss_descends_the_kl_from_best_of_n(n, gradient, best_of_n):
    """The exact mean over the best of all n-tuples of anchor samples."""
    best = best_of_n(ANCHOR, REWARDS, n)
    exact = central_difference(lambda x: kl(best, softmax(x)), POLICY_LOGITS)

    def expected(x):
        log_prob = ops.log_softmax(x)
        return sum(best[y] * forward_kl_loss(log_prob[y : y + 1]) for y in range(len(best)))

    np.testing.assert_allclose(gradient(expected, POLICY_LOGITS), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("less_the_policy", [False, True])
@pytest.mark.parametrize(("n", "k"), [(2, 2), (2, 4), (3, 4)])
def test_forward_loss_of_all_anchor_samples_is_unbiased(n, k, less_the_policy, gradient, best_of_n):
    """The exact mean over all k-tuples of anchor samples, each counted by its chance to be the best of n of them."""
    exact = central_difference(lambda x: kl(best_of_n(ANCHOR, REWARDS, n), softmax(x)), POLICY_LOGITS)
    tuples = np.array(list(itertools.product(range(5), repeat=k)), "int32")
    probability = np.prod(ANCHOR[tuples], axis=1, keepdims=True)
    weights = best_of_n_weights(REWARDS[tuples], n)

    def expected(x):
        log_prob = ops.take(ops.log_softmax(x), tuples)
        # forward_kl_loss is a mean over prompts: with gradients times their number and probability, that over tuples
        here = ops.stop_gradient(log_prob)
        log_prob = here + ops.convert_to_tensor((len(tuples) * probability).astype("float32")) * (log_prob - here)
        return forward_kl_loss(log_prob, weights, np.log(ANCHOR)[tuples] if less_the_policy else None)

    np.testing.assert_allclose(gradient(expected, POLICY_LOGITS), exact, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("k", [2, 4, 8])
def test_where_policy_and_anchor_agree_there_is_no_noise_without_reward(k, gradient):
    """All rewards equal, so that the gradient is 0: weights alone leave noise of variance 1/k, less the policy's none."""
    rng = np.random.default_rng(0)
    drawn = rng.choice(5, (64, k), p=ANCHOR).astype("int32")
    weights = best_of_n_weights(np.zeros(drawn.shape), 2)

    def loss(x, *anchor_log_prob):
        return forward_kl_loss(ops.take(ops.log_softmax(x), drawn), weights, *anchor_log_prob)

    np.testing.assert_allclose(gradient(lambda x: loss(x, np.log(ANCHOR)[drawn]), ANCHOR_LOGITS), 0, atol=1e-6)
    assert np.abs(gradient(loss, ANCHOR_LOGITS)).max() > 0.2 / np.sqrt(64 * k)


def test_where_nothing_is_left_to_learn_little_noise_is(gradient, best_of_n):
    """At Best-of-2 the expected gradient is 0, and rho / k what the weights estimate: all that is left is their error."""
    logits, rng = np.log(best_of_n(ANCHOR, REWARDS, 2)), np.random.default_rng(0)
    draws = rng.choice(5, (100, 1, 8), p=ANCHOR).astype("int32")

    def variance(less_the_policy):
        def loss(x, drawn):
            anchor_log_prob = np.log(ANCHOR)[drawn] if less_the_policy else None
            return forward_kl_loss(
                ops.take(ops.log_softmax(x), drawn), best_of_n_weights(REWARDS[drawn], 2), anchor_log_prob
            )

        return np.mean([np.sum(gradient(lambda x, drawn=drawn: loss(x, drawn), logits) ** 2) for drawn in draws])

    assert variance(True) < variance(False) / 5


def test_forward_loss_is_the_mean_over_the_batch(to_numpy, gradient):
    np.testing.assert_allclose(to_numpy(forward_kl_loss([-1.0, -3.0, -8.0])), 4.0, rtol=1e-6)
    np.testing.assert_allclose(gradient(forward_kl_loss, [-1.0, -3.0, -8.0]), -1 / 3, rtol=1e-6)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_backward_loss_descends_the_kl_to_best_of_n(n, gradient, best_of_n):
    """With the collision factor the reward is exact under ties, and the factor n - 1 makes the gradient that of the KL."""
    best = best_of_n(ANCHOR, REWARDS, n)
    exact = central_difference(lambda x: kl(softmax(x), best), POLICY_LOGITS)
    reward, anchor_log_prob = ops.convert_to_numpy(bond_reward(P_LESS_EQUAL, P_LESS, n)), np.log(ANCHOR)
    expected = over_pairs(lambda lp, rows: backward_kl_loss(lp, anchor_log_prob[rows], reward[rows], n), POLICY_LOGITS)
    np.testing.assert_allclose(gradient(expected, POLICY_LOGITS), exact, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_kl_loss_descends_the_kl_to_the_anchor(seed, gradient):
    logits = np.random.default_rng(seed).normal(size=5)
    ours = gradient(over_pairs(lambda lp, rows: kl_loss(lp, np.log(ANCHOR)[rows]), logits), logits)
    np.testing.assert_allclose(ours, central_difference(lambda x: kl(softmax(x), ANCHOR), logits), rtol=1e-5, atol=2e-6)
    assert kl(softmax(logits - 0.01 * ours), ANCHOR) < kl(softmax(logits), ANCHOR) - 0.005 * np.sum(ours**2)


def test_kl_loss_rests_at_the_anchor(gradient):
    np.testing.assert_allclose(
        gradient(over_pairs(lambda lp, rows: kl_loss(lp, np.log(ANCHOR)[rows]), ANCHOR_LOGITS), ANCHOR_LOGITS), 0, atol=1e-6
    )


@pytest.mark.parametrize("n", [2, 3, 4])
def test_divergences_rest_at_best_of_n(n, gradient, best_of_n):
    logits = np.log(best_of_n(ANCHOR, REWARDS, n))
    reward = ops.convert_to_numpy(bond_reward(P_LESS_EQUAL, P_LESS, n))
    loss = over_pairs(lambda lp, rows: backward_kl_loss(lp, np.log(ANCHOR)[rows], reward[rows], n), logits)
    np.testing.assert_allclose(gradient(loss, logits), 0, atol=2e-6)


LOG_PROB, ANCHOR_LOG_PROB, REWARD = np.array([-1.0, -2.5, -0.5]), np.array([-1.5, -1.0, -2.0]), np.array([-0.3, 0.0, -2.0])


def advantages(returns):
    return returns - np.array([np.mean(np.delete(returns, i)) for i in range(len(returns))])


@pytest.mark.parametrize("n", [2, 3, 16])
def test_backward_gradient_sample_by_sample(n, gradient):
    ours = gradient(lambda x: backward_kl_loss(x, ANCHOR_LOG_PROB, REWARD, n), LOG_PROB)
    returns = REWARD - (LOG_PROB - ANCHOR_LOG_PROB) / (n - 1)
    np.testing.assert_allclose(ours, -(n - 1) * advantages(returns) / 3, rtol=1e-5)


def test_kl_gradient_sample_by_sample(gradient):
    ours = gradient(lambda x: kl_loss(x, ANCHOR_LOG_PROB), LOG_PROB)
    np.testing.assert_allclose(ours, advantages(LOG_PROB - ANCHOR_LOG_PROB) / 3, rtol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: backward_kl_loss(LOG_PROB, x, REWARD, 3),
        lambda x: backward_kl_loss(LOG_PROB, ANCHOR_LOG_PROB, x, 3),
        lambda x: kl_loss(LOG_PROB, x),
    ],
    ids=["backward anchor", "backward reward", "kl anchor"],
)
def test_no_gradient_flows_into_the_bracket(loss, gradient):
    np.testing.assert_array_equal(gradient(loss, [-1.0, -2.0, -4.0]), 0)


@pytest.mark.parametrize("kind", [list, lambda v: ops.convert_to_tensor(v, "bfloat16")], ids=["lists", "bfloat16"])
def test_losses_take_lists_and_half_precision(kind, to_numpy):
    log_prob, anchor_log_prob, reward = (kind(np.array(v)) for v in ([-1.0, -2.0], [-2.0, -2.5], [0.0, -1.0]))
    # ratios 1 and 1/2; returns -1/2 and -5/4 (n = 3), so that the advantages are +-3/4; with the factor 2
    np.testing.assert_allclose(to_numpy(backward_kl_loss(log_prob, anchor_log_prob, reward, 3)), -0.75, rtol=1e-6)
    np.testing.assert_allclose(to_numpy(kl_loss(log_prob, anchor_log_prob)), 0.25, rtol=1e-6)


@pytest.mark.parametrize("n", [1, 0])
def test_backward_loss_refuses_best_of_one(n):
    with pytest.raises(ValueError, match=rf"`n` must be an integer of at least 2. Received: n={n}"):
        backward_kl_loss(LOG_PROB, ANCHOR_LOG_PROB, REWARD, n)


@pytest.mark.parametrize(("beta", "expected"), [(0, 2.0), (1, 10.0), (0.25, 4.0), (0.5, 6.0)])
def test_jeffreys_weighs_forward_and_backward(beta, expected):
    assert jeffreys_loss(2.0, 10.0, beta) == expected


def test_jeffreys_weighs_both_alike_by_default():
    assert jeffreys_loss(2.0, 10.0) == 6.0


@pytest.mark.parametrize("beta", [-0.1, 1.1, float("nan")])
def test_jeffreys_refuses_weights_outside_0_and_1(beta):
    with pytest.raises(ValueError) as error:
        jeffreys_loss(2.0, 10.0, beta)
    assert str(error.value) == f"`beta` must lie in [0, 1]. Received: beta={beta}"
