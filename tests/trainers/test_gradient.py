"""The update's sampled gradient against the exact one, by enumeration of every completion of a tiny Gemma."""

import math

import keras
import numpy as np
import pytest
import tiny
from keras import ops
from scripted import make

from keras_bond import BOND, JBOND, BestOfNSFT, IterativeBOND, Reinforce
from keras_bond.ops import sequence_log_prob
from keras_bond.quantiles import MonteCarlo
from keras_bond.rollout import weights_of

BATCH, REPEATS = 256, 32


def jbond_reward(trainer, less, less_equal):
    return -(2.0**trainer.n) * math.log(2) * (1 - less_equal) ** trainer.n


def bond_reward(trainer, less, less_equal):
    """E[r_BOND(y)] over the counts (a below, b equal) of k anchor samples: a trinomial, summed."""
    k, s, n = trainer.quantiles.num_samples, trainer.quantiles.smoothing, trainer.n
    total = 0.0
    for a, b in ((i, j) for i in range(k + 1) for j in range(k + 1 - i)):
        ways = math.factorial(k) / (math.factorial(a) * math.factorial(b) * math.factorial(k - a - b))
        probability = ways * less**a * (less_equal - less) ** b * (1 - less_equal) ** (k - a - b)
        p, q = a / (k + s), (a + b + s) / (k + s)
        total = total + probability * (math.log((q**n - p**n) / (q - p)) / (n - 1) if trainer.exact_ties else math.log(q))
    return total


def exact_gradient(trainer, expected_reward):
    """-G of the paper as one gradient of sum_y w(y) log pi(y), with w fixed, in the order of trainable variables."""
    policy, rollout = trainer.policy, trainer.rollout
    ids, mask = tiny.completions(7, rollout.max_completion_length)
    prompt_ids, prompt_mask = rollout.pad(rollout.encode([tiny.PROMPT] * len(ids)))
    texts = rollout.decode(type("C", (), {"token_ids": ids, "mask": mask}))
    reward = np.array(trainer.reward([tiny.PROMPT] * len(ids), texts))

    def log_probs(weights):
        values = rollout.score(weights, prompt_ids, prompt_mask, ids)
        return ops.convert_to_numpy(sequence_log_prob(values, mask)).astype("float64")

    log_pi = log_probs(weights_of(policy))
    log_anchor = log_probs(weights_of(policy, [s.value for s in trainer.anchor.shadows]))
    pi, anchor = np.exp(log_pi), np.exp(log_anchor)
    np.testing.assert_allclose([pi.sum(), anchor.sum()], 1, atol=1e-5)
    log_ratio = log_pi - log_anchor
    if isinstance(trainer, Reinforce):
        returns = reward - trainer.beta_rl * log_ratio
        weight = -pi * (returns - pi @ returns)
    else:
        n = trainer.n
        less = np.array([anchor[reward < r].sum() for r in reward])
        less_equal = np.minimum([anchor[reward <= r].sum() for r in reward], 1.0)
        best = anchor * (less_equal**n - less**n) / (less_equal - less)
        beta, gamma = getattr(trainer, "beta", 0.0), getattr(trainer, "gamma", 0.0)
        weight = -(1 - beta) * best + gamma * pi * (log_ratio - pi @ log_ratio)
        if beta:
            returns = expected_reward(trainer, less, less_equal) - log_ratio / (n - 1)
            weight += beta * (n - 1) * -pi * (returns - pi @ returns)

    weight = ops.convert_to_tensor(weight.astype("float32"))
    tensors = [ops.convert_to_tensor(x) for x in (prompt_ids, prompt_mask, ids)]

    def surrogate():
        return ops.sum(weight * sequence_log_prob(rollout.token_log_probs(*tensors), mask))

    return tiny.gradients(surrogate, policy.trainable_variables)


def sampled_gradients(trainer):
    """(REPEATS, D): the step that SGD with learning rate 1 takes, for fresh samples each time, negated."""
    variables = trainer.policy.trainable_variables
    shadows = trainer.anchor.shadows
    start, anchor = ([ops.convert_to_numpy(v.value) + 0 for v in group] for group in (variables, shadows))
    gradients = []
    for _ in range(REPEATS):
        trainer.fit([tiny.PROMPT], batch_size=BATCH, verbose=0)
        gradients.append(
            np.concatenate([(s - ops.convert_to_numpy(v.value)).ravel() for s, v in zip(start, variables, strict=True)])
        )
        for group, values in ((variables, start), (shadows, anchor)):
            for variable, value in zip(group, values, strict=True):
                variable.assign(value)
    return np.stack(gradients).astype("float64")


@pytest.mark.parametrize(
    ("algorithm", "settings", "lora"),
    [
        (JBOND, {"n": 2, "beta": 0.5, "gamma": 0.0, "eta": 0.3}, None),
        (JBOND, {"n": 3, "beta": 0.25, "gamma": 0.7, "variance_reduction": False}, None),
        (JBOND, {"n": 2, "beta": 0.3, "gamma": 1.0, "num_samples": 2, "num_anchor_samples": 5}, 2),
        (BOND, {"n": 3, "beta": 1.0, "quantiles": MonteCarlo(2), "exact_ties": True}, None),
        (
            IterativeBOND,
            {"n": 2, "beta": 0.5, "quantiles": MonteCarlo(4, smoothing=0.5), "variance_reduction": True},
            None,
        ),
        (BestOfNSFT, {"n": 4}, None),
        (Reinforce, {"beta_rl": 0.5}, None),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_sampled_gradient_is_unbiased_for_the_exact_one(algorithm, settings, lora):
    policy = tiny.causal_lm(seed=1, lora=lora)
    trainer = make(policy, tiny.letters_reward, rng_seed=2, algorithm=algorithm, **settings)
    tiny.perturb(policy, np.random.default_rng(3), 0.15)  # away from the anchor, so that no term vanishes
    exact = np.concatenate(
        [g.ravel() for g in exact_gradient(trainer, jbond_reward if algorithm is JBOND else bond_reward)]
    ).astype("float64")
    samples = sampled_gradients(trainer)
    assert samples.shape[1] == sum(math.prod(v.shape) for v in policy.trainable_variables)

    directions = np.random.default_rng(4).standard_normal((12, exact.size)) * np.abs(exact)  # weighted to where it acts
    directions = np.concatenate([[exact], directions])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    projections = samples @ directions.T
    error = projections.std(0, ddof=1) / np.sqrt(REPEATS)
    z = (projections.mean(0) - directions @ exact) / error
    assert np.abs(z).max() < 4, z
    assert (directions @ exact)[0] > 8 * error[0]  # the test has power: the gradient is well outside the noise


def test_first_step_weights():
    """At pi = pi_a the log-ratio is 0 to rounding, r_J fires for a third of untied samples, and the loss is section 6's."""
    policy = tiny.causal_lm(seed=5)
    untied = lambda prompts, texts: list(np.random.default_rng(6).permutation(len(texts)))  # noqa: E731
    trainer = make(policy, untied, rng_seed=7, beta=0.3, optimizer=keras.optimizers.SGD(1e-3))
    batch = 2048
    logs = {k: v[0] for k, v in trainer.fit([tiny.PROMPT], batch_size=batch, verbose=0).history.items()}
    assert abs(logs["kl_anchor"]) < 1e-6
    assert abs(logs["kl_reference"]) < 1e-6
    assert abs(logs["penalised"] - 1 / 3) < 4 * math.sqrt(2 / 9 / batch)
    assert abs(logs["win_rate"] - 0.5) < 4 * math.sqrt(1 / 12 / batch) + 0.01
    assert logs["tie_rate"] == 0
    np.testing.assert_allclose(logs["loss"], 0.7 * logs["forward_loss"] + 0.3 * logs["backward_loss"], rtol=1e-5)
