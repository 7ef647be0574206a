"""The row-wise optimizer against NumPy, SGD, and a policy whose natural gradient is known."""

import keras
import numpy as np
import pytest
import tiny
from keras import ops

from keras_bond import JBOND
from keras_bond.optimizers import RowwiseSGD

SHAPES = (4, 3), (2, 3, 5), (6,)


def apply(optimizer, gradients, starts):
    """The variables after an update with each of `gradients`."""
    variables = [keras.Variable(start) for start in starts]
    for of_step in gradients:
        optimizer.apply([ops.convert_to_tensor(g) for g in of_step], variables)
    return [ops.convert_to_numpy(v) for v in variables]


def draw(steps=5):
    rng = np.random.default_rng(0)
    starts = [rng.standard_normal(shape).astype("float32") for shape in SHAPES]
    return [[rng.standard_normal(shape).astype("float32") for shape in SHAPES] for _ in range(steps)], starts


@pytest.mark.parametrize(("momentum", "shrinkage"), [(0.0, 0.0), (0.9, 0.0), (0.9, 2.5)])
def test_its_steps_are_those_of_the_equation(momentum, shrinkage):
    gradients, starts = draw()
    rate, damping, horizon = 0.1, 0.5, 3
    got = apply(RowwiseSGD(rate, momentum, damping, shrinkage, horizon), gradients, starts)
    for i, value in enumerate(starts):
        rows = len(value) if value.ndim > 1 else 1
        expected, s, mean, step = value.reshape(rows, -1).astype("float64"), np.zeros((rows, 1)), 0.0, 0.0
        for t, of_step in enumerate(gradients, 1):
            g = of_step[i].reshape(rows, -1)
            s = s + (np.sum(g**2, axis=1, keepdims=True) - s) / min(t, horizon)
            mean = mean + (g - mean) / min(t, horizon)
            z = min(t, horizon) * np.sum(mean**2, axis=1, keepdims=True) / s
            step = momentum * step - rate * g / (1 + s / (damping * s.mean())) * z / (z + shrinkage)
            expected = expected + step
        np.testing.assert_allclose(got[i], expected.reshape(value.shape), rtol=1e-5, atol=1e-6)


def test_with_a_large_damping_it_is_sgd():
    gradients, starts = draw()
    sgd = apply(keras.optimizers.SGD(0.1, momentum=0.9), gradients, starts)
    for ours, theirs in zip(apply(RowwiseSGD(0.1, 0.9, damping=1e9), gradients, starts), sgd, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shrinkage", [0.0, 3.0])
def test_rows_without_a_gradient_stay(shrinkage):
    start = np.ones((3, 2), "float32")
    (got,) = apply(RowwiseSGD(1.0, shrinkage=shrinkage), [[np.zeros((3, 2), "float32")]] * 2, [start])
    np.testing.assert_array_equal(got, start)


def gain_per_kl(optimizer, share, seed):
    """The KL efficiency, to first order, of the step after 300 noisy gradients of the logits of 50 tokens.

    The tokens have Zipf's frequencies; a share of them has a random worth, the others none. The natural gradient's direction
    is the worth, and has an efficiency of 1.
    """
    rng = np.random.default_rng(seed)
    p = 1 / np.arange(1, 51)
    p, worth, samples = p / p.sum(), rng.standard_normal(50) * (rng.random(50) < share), 100
    worth -= p @ worth
    gradients = []
    for _ in range(300):  # a sample's reward is mostly not its token's doing
        tokens = rng.choice(50, samples, p=p)
        rewards = worth[tokens] / 2 + rng.standard_normal(samples)
        gradient = np.bincount(tokens, rewards, 50) - rewards.sum() * p
        gradients.append([-gradient[:, None].astype("float32") / samples])
    (step,) = apply(optimizer, gradients, [np.zeros((50, 1), "float32")])
    step = step[:, 0] - p @ step[:, 0]
    return (p @ (step * worth)) ** 2 / (p @ step**2) / (p @ worth**2)


def test_it_spends_less_kl_for_the_same_gain():
    assert gain_per_kl(RowwiseSGD(1e-3), share=1.0, seed=1) > 0.8
    assert gain_per_kl(keras.optimizers.SGD(1e-3), share=1.0, seed=1) < 0.6


@pytest.mark.parametrize("seed", range(4))
def test_shrinkage_spares_the_kl_of_rows_that_are_worth_nothing(seed):
    without, with_it = (gain_per_kl(RowwiseSGD(1e-3, shrinkage=c, horizon=300), 0.1, seed) for c in (0.0, 3.0))
    assert with_it > without + 0.02


def test_the_mean_is_float32_whatever_the_policy_is():
    optimizer, variable = RowwiseSGD(1e-3, shrinkage=1.0, horizon=100), keras.Variable(np.zeros((2, 2)), dtype="bfloat16")
    gradient = np.array([[1.0, 2.0], [3.0, 4.0]], "float32")
    for now in [gradient] * 100 + [2 * gradient]:
        optimizer.apply([ops.convert_to_tensor(now, "bfloat16")], [variable])
    np.testing.assert_allclose(ops.convert_to_numpy(optimizer.means[0]), 1.01 * gradient, rtol=1e-6)


def test_it_trains_and_is_saved_with_the_trainer(tmp_path):
    def trainer():
        made = JBOND(tiny.causal_lm(), lambda prompts, completions: [float(len(c)) for c in completions])
        made.compile(RowwiseSGD(1e-2, momentum=0.9, damping=2.0, shrinkage=1.5, horizon=7, global_clipnorm=1.0))
        return made

    first = trainer()
    logs = first.fit(["a b", "c", "d", "e"], batch_size=4, epochs=2, verbose=0).history
    assert logs["anchor_distance"][-1] > 0
    first.save_weights(tmp_path / "state.weights.h5")
    second = trainer()
    second.load_weights(tmp_path / "state.weights.h5")
    for ours, theirs in zip(first.optimizer.variables, second.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(ours), ops.convert_to_numpy(theirs))
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(first.optimizer))
    assert (type(copy), copy.damping, copy.shrinkage, copy.horizon, copy.momentum) == (RowwiseSGD, 2.0, 1.5, 7, 0.9)


@pytest.mark.parametrize("argument", [{"damping": 0.0}, {"shrinkage": -1.0}, {"horizon": 0}])
def test_bad_arguments(argument):
    with pytest.raises(ValueError, match=f"`{next(iter(argument))}` must be"):
        RowwiseSGD(**argument)
