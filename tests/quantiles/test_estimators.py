"""The estimators of p_<=, against counting and enumeration."""

import keras
import numpy as np
import pytest
import tiny
from keras import ops

from keras_bond import BOND
from keras_bond.ops import sequence_log_prob
from keras_bond.quantiles import Learned, MonteCarlo
from keras_bond.rollout import Trajectory, weights_of

SIZES = {"max_prompt_length": 4, "max_completion_length": 3}


def trajectory(reward, anchor_rewards):
    compared = {"reward": reward, "relative_reward": reward, "relative_anchor_rewards": anchor_rewards}
    fields = {name: np.asarray(values, "float32") for name, values in compared.items()}
    return Trajectory(**dict.fromkeys(Trajectory._fields) | fields)


def test_monte_carlo_counts_the_first_k():
    samples = trajectory([1.0, 0.0], [[0, 1, 2, 9], [1, 1, 1, 0]])
    p_less, p_less_equal = (ops.convert_to_numpy(p) for p in MonteCarlo(3)(samples))
    np.testing.assert_allclose(p_less, [1 / 4, 0])
    np.testing.assert_allclose(p_less_equal, [3 / 4, 1 / 4])  # no count of 0: the floor is 1/(k + 1)
    np.testing.assert_allclose(ops.convert_to_numpy(MonteCarlo(4, smoothing=0.5)(samples)[1]), [2.5 / 4.5, 1.5 / 4.5])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MonteCarlo(0), "`num_samples` must be an integer of at least 1. Received: num_samples=0"),
        (
            lambda: MonteCarlo(4, smoothing=0),
            "`smoothing` must be above 0, or log p_<= may be infinite. Received: smoothing=0",
        ),
        (lambda: Learned(0), "`num_samples` must be an integer of at least 1. Received: num_samples=0"),
        (lambda: Learned(learning_rate=0.0), "`learning_rate` must be above 0. Received: learning_rate=0.0"),
        (lambda: Learned(floor=1.0), r"`floor` must lie in \(0, 1\). Received: floor=1.0"),
    ],
)
def test_bad_arguments_name_themselves(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def exact_quantiles(trainer):
    """(ids, mask, pi, p_<=) of all completions under the anchor, which is the policy here."""
    rollout = trainer.rollout
    ids, mask = tiny.completions(7, rollout.max_completion_length)
    prompt_ids, prompt_mask = rollout.pad(rollout.encode([tiny.PROMPT] * len(ids)))
    scores = sequence_log_prob(rollout.score(weights_of(trainer.policy), prompt_ids, prompt_mask, ids), mask)
    pi = np.exp(ops.convert_to_numpy(scores).astype("float64"))
    rewards = np.array(tiny.letters_reward(None, rollout.decode(type("C", (), {"token_ids": ids, "mask": mask}))))
    return prompt_ids, prompt_mask, ids, mask, pi, np.array([pi[rewards <= r].sum() for r in rewards])


def test_what_has_no_reward_has_no_quantile_and_teaches_none():
    policy, nan = tiny.causal_lm(), float("nan")
    ids, mask = tiny.completions(7, 2)
    ids, mask, prompts = ids[:6], mask[:6], np.full((6, 2), 5, "int32")
    samples = trajectory([1.0, nan, 0.0, 2.0, nan, 1.0], [[0.0], [1.0], [nan], [3.0], [nan], [1.0]])
    samples = samples._replace(
        prompt_ids=prompts, prompt_mask=np.ones_like(prompts), completion_ids=ids, completion_mask=mask
    )
    p_less_equal = ops.convert_to_numpy(MonteCarlo(1)(samples)[1])
    np.testing.assert_array_equal(p_less_equal, [1.0, nan, nan, 0.5, nan, 1.0])

    whole, rest = Learned(), Learned()
    for learned in (whole, rest):
        learned.follow(policy)
    np.testing.assert_array_equal(np.isnan(whole(samples)[1]), np.isnan(samples.reward))
    whole.observe(samples)
    rest.observe(Trajectory(*(None if field is None else field[[0, 3, 5]] for field in samples)))
    assert whole.history == pytest.approx(rest.history, rel=1e-5)
    moments = [[ops.convert_to_numpy(v.value) + 0 for v in learned.model.optimizer.variables] for learned in (whole, rest)]
    assert max(np.abs(m).max() for m in moments[0][2:]) > 0.01  # a tenth of the gradient, and its square
    for a, b in zip(*moments, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=64 * np.finfo("float32").eps)

    before = [ops.convert_to_numpy(v.value) + 0 for v in whole.variables]
    whole.observe(samples._replace(relative_reward=np.full(6, nan, "float32")))
    assert len(whole.history) == 1  # there was nothing to learn from
    for a, b in zip(before, whole.variables, strict=True):
        np.testing.assert_array_equal(a, ops.convert_to_numpy(b.value))


@pytest.mark.parametrize("lora", [None, 2])
def test_the_learned_quantile_starts_from_the_reference_at_one_half(lora):
    policy = tiny.causal_lm(lora=lora)
    learned = Learned()
    learned.follow(policy)
    theirs = [w for w in policy.backbone.weights if "lora" not in w.name]
    for a, b in zip(learned.model.backbone.weights, theirs, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(a.value), ops.convert_to_numpy(b.value))
        assert a is not b
    ids, mask = tiny.completions(7, 2)
    prompts = np.full((len(ids), 2), 5, "int32"), np.ones((len(ids), 2), "int32")
    np.testing.assert_array_equal(learned.predict(*prompts, ids, mask), np.float32(0.5))


def test_the_learned_quantile_sees_the_completion_and_nothing_after_it():
    learned = Learned()
    learned.follow(tiny.causal_lm())
    learned.model.head.kernel.assign(np.random.default_rng(0).normal(size=(8, 1)))
    prompt, prompt_mask = np.array([[0, 2, 5]] * 3), np.array([[0, 1, 1]] * 3)
    ids = np.array([[4, 1, 0], [4, 1, 6], [5, 1, 0]])
    mask = np.array([[1, 1, 0]] * 3, bool)
    first, padded, other = learned.predict(prompt, prompt_mask, ids, mask)
    assert first == pytest.approx(padded, abs=1e-6)
    assert abs(first - other) > 1e-3
    shifted = learned.predict(prompt[:, 1:], prompt_mask[:, 1:], ids, mask)  # left padding changes nothing
    assert shifted[0] == pytest.approx(first, abs=1e-5)


@pytest.mark.any_backend
def test_the_learned_quantile_converges_to_the_exact_one():
    """With the policy at rest, p_theta(y) comes to P[r(y') <= r(y)], from one anchor sample y' a prompt."""
    trainer = BOND(tiny.causal_lm(seed=1), tiny.letters_reward, n=2, quantiles=Learned(learning_rate=0.02), **SIZES)
    trainer.compile(keras.optimizers.SGD(0.0))
    *inputs, pi, exact = exact_quantiles(trainer)
    before = pi @ np.abs(trainer.quantiles.predict(*inputs) - exact)
    trainer.fit([tiny.PROMPT], batch_size=256, steps_per_epoch=120, verbose=0)
    predicted = trainer.quantiles.predict(*inputs)
    after = pi @ np.abs(predicted - exact)
    assert before > 0.15
    assert after < 0.05
    history = trainer.quantiles.history
    assert len(history) == 120
    entropy = -(exact * np.log(exact.clip(1e-9)) + (1 - exact) * np.log((1 - exact).clip(1e-9)))
    assert np.mean(history[-30:]) == pytest.approx(pi @ entropy, abs=0.03)  # the cross-entropy's least value
    assert history[0] == pytest.approx(np.log(2), abs=1e-5)
