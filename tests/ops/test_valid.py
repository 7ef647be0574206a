"""Samples without a reward: every op gives what it gives where they were never drawn."""

import itertools
import math

import numpy as np
import pytest
from keras import ops

from keras_bond.ops import (
    backward_kl_loss,
    best_of_n_weights,
    bond_reward,
    forward_kl_loss,
    is_valid,
    jbond_reward,
    kl_loss,
    leave_one_out_baseline,
    monte_carlo_quantiles,
    reinforce_loss,
    valid_mean,
    win_rate,
)

NAN = float("nan")
RNG = np.random.default_rng(0)


def abstaining(rewards, share):
    return np.where(RNG.random(rewards.shape) < share, NAN, rewards)


REWARD = abstaining(RNG.integers(0, 3, 40) / 2, 0.2)
ANCHOR_REWARDS = abstaining(RNG.integers(0, 3, (40, 5)) / 2, np.linspace(0, 1, 40)[:, None])
COUNT = (~np.isnan(ANCHOR_REWARDS)).sum(axis=1)
assert {*COUNT} == {*range(6)}  # every case is there


def test_the_mean_of_what_is_there(to_numpy):
    np.testing.assert_allclose(to_numpy(valid_mean(ANCHOR_REWARDS)), np.nanmean(ANCHOR_REWARDS), rtol=1e-6)
    assert float(valid_mean([NAN, NAN])) == 0
    assert float(valid_mean([-np.inf, NAN, 1.0])) == -np.inf
    assert np.isnan(float(valid_mean([NAN, 1.0, 3.0], [True, True, False])))  # told to count it, it does
    assert float(valid_mean([NAN, 1.0, 3.0], [False, True, True])) == 2


@pytest.mark.parametrize("smoothing", [0.0, 1.0])
def test_quantiles_count_the_anchor_samples_that_have_a_reward(smoothing, to_numpy):
    ours = np.stack([to_numpy(p) for p in monte_carlo_quantiles(REWARD, ANCHOR_REWARDS, smoothing)], axis=1)
    wins = to_numpy(win_rate(REWARD, ANCHOR_REWARDS))
    for i, (reward, anchor) in enumerate(zip(REWARD, ANCHOR_REWARDS, strict=True)):
        anchor = anchor[~np.isnan(anchor)]
        if np.isnan(reward) or not len(anchor):
            assert np.isnan([*ours[i], wins[i]]).all()
        else:
            counts = np.array([np.sum(anchor < reward), np.sum(anchor <= reward) + smoothing])
            np.testing.assert_allclose(ours[i], counts / (len(anchor) + smoothing), rtol=1e-6)
            np.testing.assert_allclose(wins[i], np.mean((anchor < reward) + 0.5 * (anchor == reward)), rtol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_jbond_reward_is_the_mean_over_every_choice_of_those_that_have_one(n, to_numpy):
    ours = to_numpy(jbond_reward(REWARD, ANCHOR_REWARDS, n))
    for mine, reward, anchor in zip(ours, REWARD, ANCHOR_REWARDS, strict=True):
        choices = [*itertools.combinations(anchor[~np.isnan(anchor)], n)]
        if np.isnan(reward) or not choices:
            assert np.isnan(mine)
        else:
            expected = -(2.0**n) * math.log(2) * np.mean([reward < min(chosen) for chosen in choices])
            np.testing.assert_allclose(mine, expected, rtol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_best_is_one_that_has_a_reward(n, to_numpy):
    ours = to_numpy(best_of_n_weights(ANCHOR_REWARDS, n))
    for mine, row in zip(ours, ANCHOR_REWARDS, strict=True):
        choices = [[*chosen] for chosen in itertools.combinations(np.flatnonzero(~np.isnan(row)), n)]
        expected = np.where(np.isnan(row) | (not choices), NAN, 0)
        for chosen in choices:
            best = [i for i in chosen if row[i] == row[chosen].max()]
            expected[best] += 1 / len(best) / len(choices)
        np.testing.assert_allclose(mine, expected, atol=1e-6)


def test_a_large_choice_of_few_does_not_underflow(to_numpy):
    rewards = np.where(np.arange(300) < 40, np.arange(300.0), NAN)[None]
    weights = to_numpy(best_of_n_weights(rewards, 30))[0, :40]
    np.testing.assert_allclose(weights, [math.comb(i, 29) / math.comb(40, 30) for i in range(40)], rtol=1e-6)


RETURNS = np.array([0.5, NAN, -1.0, 2.0, NAN])
VALID = ~np.isnan(RETURNS)
LOG_PROB, ANCHOR_LOG_PROB = -RNG.exponential(size=(2, 5))


def test_the_baseline_is_the_mean_of_the_others_that_count(to_numpy):
    ours = to_numpy(leave_one_out_baseline(RETURNS))
    np.testing.assert_allclose(ours, [np.nanmean(np.delete(RETURNS, i)) for i in range(5)], rtol=1e-6)
    table = np.array([[1.0, NAN, 3.0], [NAN, 2.0, NAN], [NAN, NAN, NAN]])
    np.testing.assert_allclose(to_numpy(leave_one_out_baseline(table))[0], [3.0, 2.0, 1.0])
    assert to_numpy(leave_one_out_baseline(table))[1, 1] == 0  # there is no other
    assert to_numpy(leave_one_out_baseline(table))[2].tolist() == [0, 0, 0]


LOSSES = {
    "reinforce": lambda lp, rows: reinforce_loss(lp, RETURNS[rows]),
    "backward": lambda lp, rows: backward_kl_loss(lp, ANCHOR_LOG_PROB[rows], RETURNS[rows], 3),
    "kl": lambda lp, rows: kl_loss(lp, ANCHOR_LOG_PROB[rows], VALID[rows]),
    "weighted": lambda lp, rows: forward_kl_loss(ops.stack([lp, 2 * lp], axis=1), np.stack([RETURNS[rows]] * 2, axis=1)),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_loss_is_that_of_the_batch_without_them(loss, gradient, to_numpy):
    rows = np.flatnonzero(VALID)
    whole, rest = gradient(lambda x: loss(x, np.arange(5)), LOG_PROB), gradient(lambda x: loss(x, rows), LOG_PROB[rows])
    np.testing.assert_allclose(whole[rows], rest, rtol=1e-6)
    np.testing.assert_array_equal(whole[~VALID], 0)
    values = [float(to_numpy(loss(ops.convert_to_tensor(LOG_PROB[r].astype("float32")), r))) for r in (np.arange(5), rows)]
    np.testing.assert_allclose(*values, rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_where_none_counts_there_is_no_loss_and_no_gradient(loss, gradient):
    none = np.flatnonzero(~VALID)
    assert float(loss(ops.convert_to_tensor(LOG_PROB[none].astype("float32")), none)) == 0
    np.testing.assert_array_equal(gradient(lambda x: loss(x, none), LOG_PROB[none]), 0)


def test_within_a_prompt_all_samples_that_count_count_alike(gradient):
    returns = np.array([[1.0, NAN, 3.0], [4.0, 2.0, 0.0], [NAN, NAN, NAN]])
    ours = gradient(lambda x: reinforce_loss(x, returns), np.zeros((3, 3)))
    np.testing.assert_allclose(ours, -np.array([[-2, 0, 2], [3, 0, -3], [0, 0, 0]]) / 5, rtol=1e-6)


@pytest.mark.parametrize("broken", ["policy", "anchor"])
def test_a_log_prob_that_is_not_a_number_is_no_abstention(broken):
    """It comes of weights that have diverged, and has to show."""
    log_prob, anchor = LOG_PROB.copy(), ANCHOR_LOG_PROB.copy()
    (log_prob if broken == "policy" else anchor)[0] = NAN
    assert np.isnan(float(backward_kl_loss(log_prob, anchor, RETURNS, 3)))
    assert np.isnan(float(kl_loss(log_prob, anchor)))
    assert np.isnan(float(forward_kl_loss(log_prob[None], RETURNS[None], anchor[None])))


# A softmax policy over five texts of one prompt, two of which tie and one of which has no reward.

REWARDS = np.array([1.0, 0.0, 1.0, NAN, 2.0])
THERE = ~np.isnan(REWARDS)
POLICY_LOGITS = np.array([0.4, -0.3, 0.9, 0.7, 0.2])
ANCHOR = np.array([0.1, 0.25, 0.15, 0.0, 0.2])


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


def given_there(p):
    return p[THERE] / p[THERE].sum()


ANCHOR[3] = softmax(POLICY_LOGITS)[3]  # as often as the policy's
ANCHOR[THERE] *= (1 - ANCHOR[3]) / ANCHOR[THERE].sum()


def central_difference(f, x, step=1e-5):
    return np.array([(f(x + step * e) - f(x - step * e)) / (2 * step) for e in np.eye(len(x))])


def tuples_of(probability, size, least):
    """All tuples of `size` samples of which at least `least` have a reward, and how probable each is among them."""
    tuples = np.array([t for t in itertools.product(range(5), repeat=size) if THERE[[*t]].sum() >= least], "int32")
    weights = np.prod(probability[tuples], axis=1)
    return tuples, weights / weights.sum()


def over_tuples(loss, size, least):
    """The expectation of loss(log-probs (size,), tuple) over tuples of the policy."""
    tuples, weights = tuples_of(softmax(POLICY_LOGITS), size, least)

    def expected(x):
        log_prob = ops.log_softmax(x)
        return sum(w * loss(ops.take(log_prob, t), t) for w, t in zip(weights, tuples, strict=True))

    return expected


@pytest.mark.parametrize("least", [2, 3])
def test_the_backward_gradient_is_that_of_the_policy_given_that_it_has_a_reward(least, gradient):
    """KL(pi' || pi_a' p_<=^(n-1)) for pi' and pi_a' without the text that has none, descended from three samples."""
    n, anchor = 3, given_there(ANCHOR)
    less_equal = np.array([anchor[REWARDS[THERE] <= r].sum() for r in REWARDS[THERE]])
    reward = np.full(5, NAN)
    reward[THERE] = ops.convert_to_numpy(bond_reward(less_equal))

    def objective(x):
        p = given_there(softmax(x))
        return p @ (np.log(p / anchor) - (n - 1) * np.log(less_equal))

    def loss(log_prob, drawn):
        return backward_kl_loss(log_prob, np.log(ANCHOR)[drawn], reward[drawn], n)

    ours = gradient(over_tuples(loss, 3, least), POLICY_LOGITS)
    np.testing.assert_allclose(ours, central_difference(objective, POLICY_LOGITS), rtol=1e-4, atol=4e-6)


def test_the_kl_gradient_is_that_of_the_policy_given_that_it_has_a_reward(gradient):
    def objective(x):
        p = given_there(softmax(x))
        return p @ np.log(p / given_there(ANCHOR))

    def loss(log_prob, drawn):
        return kl_loss(log_prob, np.log(ANCHOR)[drawn], is_valid(REWARDS[drawn]))

    ours = gradient(over_tuples(loss, 3, 2), POLICY_LOGITS)
    np.testing.assert_allclose(ours, central_difference(objective, POLICY_LOGITS), rtol=1e-4, atol=4e-6)


@pytest.mark.parametrize("less_the_policy", [False, True])
@pytest.mark.parametrize(("n", "k"), [(2, 3), (2, 4)])
def test_the_forward_gradient_is_that_of_the_best_of_those_that_have_a_reward(n, k, less_the_policy, gradient, best_of_n):
    """KL(pi_BoN' || pi), or, less what the policy gives, KL(pi_BoN' || pi')."""
    best = best_of_n(given_there(ANCHOR), REWARDS[THERE], n)

    def objective(x):
        p = softmax(x)
        return best @ np.log(best / (given_there(p) if less_the_policy else p[THERE]))

    tuples, probability = tuples_of(ANCHOR, k, n)
    times = ops.convert_to_tensor((len(tuples) * probability[:, None]).astype("float32"))  # makes the mean an expectation

    def expected(x):
        log_prob = ops.take(ops.log_softmax(x), tuples)
        here = ops.stop_gradient(log_prob)
        log_prob = here + times * (log_prob - here)
        weights = best_of_n_weights(REWARDS[tuples], n)
        return forward_kl_loss(log_prob, weights, np.log(ANCHOR)[tuples] if less_the_policy else None)

    ours = gradient(expected, POLICY_LOGITS)
    np.testing.assert_allclose(ours, central_difference(objective, POLICY_LOGITS), rtol=1e-4, atol=4e-6)
