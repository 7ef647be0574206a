import numpy as np
import pytest
from keras import ops

from keras_bond.ops import group_advantages, leave_one_out_baseline, reinforce_loss


@pytest.mark.parametrize("size", [2, 3, 16])
def test_baseline_is_the_mean_of_the_others(size, to_numpy):
    returns = np.random.default_rng(size).normal(size=size).astype("float32")
    expected = [np.mean(np.delete(returns.astype("float64"), i)) for i in range(size)]
    np.testing.assert_allclose(to_numpy(leave_one_out_baseline(returns)), expected, rtol=1e-5, atol=1e-6)


def test_baseline_of_one_sample_is_zero(to_numpy):
    np.testing.assert_array_equal(to_numpy(leave_one_out_baseline([7.0])), [0.0])


def test_baseline_takes_integers(to_numpy):
    np.testing.assert_allclose(to_numpy(leave_one_out_baseline([1, 2, 6])), [4.0, 3.5, 1.5], rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_reinforce_gradient_is_minus_the_mean_advantage(size, gradient):
    rng = np.random.default_rng(size)
    log_prob, returns = -rng.exponential(size=size), rng.normal(size=size)
    baseline = [np.mean(np.delete(returns, i)) if size > 1 else 0.0 for i in range(size)]
    ours = gradient(lambda x: reinforce_loss(x, returns), log_prob)
    np.testing.assert_allclose(ours, -(returns - baseline) / size, rtol=1e-5, atol=1e-7)


def test_no_gradient_flows_into_the_returns(gradient):
    np.testing.assert_array_equal(gradient(lambda x: reinforce_loss([-1.0, -2.0, -4.0], x**2), [1.0, 2.0, 3.0]), 0)


def test_reinforce_gradient_is_that_of_the_expected_return(gradient):
    """Exactly, over all batches of two samples of a softmax policy: the baseline does not bias it."""
    logits, returns = np.array([0.3, -0.7, 1.1, 0.0]), np.array([2.0, -1.0, 0.5, 3.0])
    p = np.exp(logits) / np.exp(logits).sum()

    def expected_loss(x):
        log_prob = ops.log_softmax(x)
        return sum(
            p[i] * p[j] * reinforce_loss(ops.stack([log_prob[i], log_prob[j]]), returns[[i, j]])
            for i in range(4)
            for j in range(4)
        )

    np.testing.assert_allclose(gradient(expected_loss, logits), -p * (returns - p @ returns), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("log_prob", "returns", "message"),
    [
        (
            [[-1.0]],
            [1.0],
            "`log_prob` and `returns` must have the same shape. Received: log_prob.shape=(1, 1), returns.shape=(1,)",
        ),
        (
            [-1.0, -2.0],
            [1.0],
            "`log_prob` and `returns` must have the same shape. Received: log_prob.shape=(2,), returns.shape=(1,)",
        ),
        (-1.0, 1.0, "`returns` must have shape (m,) or (batch, m). Received: returns.shape=()"),
        ([[[-1.0]]], [[[1.0]]], "`returns` must have shape (m,) or (batch, m). Received: returns.shape=(1, 1, 1)"),
    ],
)
def test_bad_shapes_are_refused(log_prob, returns, message):
    with pytest.raises(ValueError) as error:
        reinforce_loss(log_prob, returns)
    assert str(error.value) == message


def test_the_baseline_of_a_matrix_is_within_each_prompt(to_numpy):
    returns = np.random.default_rng(3).normal(size=(5, 3)).astype("float32")
    expected = [[np.delete(row, i).mean() for i in range(3)] for row in returns]
    np.testing.assert_allclose(to_numpy(leave_one_out_baseline(returns)), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(to_numpy(leave_one_out_baseline(np.ones((2, 1)))), [[0], [0]])


def test_the_gradient_of_a_matrix_is_rloo(gradient):
    rng = np.random.default_rng(4)
    log_prob, returns = rng.normal(size=(2, 4, 2)).astype("float32")
    found = gradient(lambda x: reinforce_loss(x, returns), log_prob)
    difference = (returns[:, 0] - returns[:, 1])[:, None]  # with two samples each is the other's baseline
    np.testing.assert_allclose(found, -np.hstack([difference, -difference]) / 8, rtol=1e-5)


def test_group_advantages_against_numpy():
    rng = np.random.default_rng(3)
    rewards = rng.normal(size=(5, 4)).astype("float32")
    rewards[1, 2], rewards[2, 1:], rewards[3], rewards[4] = np.nan, np.nan, np.nan, 0.5
    found = ops.convert_to_numpy(group_advantages(rewards))
    for row, of_row in zip(rewards.astype("float64"), found, strict=True):
        there = ~np.isnan(row)
        if there.sum() > 1:
            expected = (row[there] - row[there].mean()) / (row[there].std(ddof=1) + 1e-4)
            np.testing.assert_allclose(of_row[there], expected, rtol=1e-5)
        assert np.isnan(of_row[~there]).all()
    assert np.isnan(found[2]).all()
    np.testing.assert_array_equal(found[4], 0)
    with pytest.raises(ValueError, match=r"`rewards` must have shape \(batch, m\). Received: rewards.shape=\(4,\)"):
        group_advantages(rewards[0])
