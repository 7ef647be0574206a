"""Rewards that abstain, through a whole update: it is the sum over the samples that have a reward, written out as loops."""

import itertools
import math

import keras
import numpy as np
import pytest
import tiny
from keras import ops
from scripted import make

from keras_bond import BOND, JBOND, BestOfNSFT, Reinforce
from keras_bond.quantiles import Learned, MonteCarlo
from keras_bond.rollout import Trajectory

RATE, BATCH = 0.5, 12
FAMILY = {
    "JBOND": (JBOND, {"n": 2, "num_samples": 2, "num_anchor_samples": 4, "beta": 0.4, "gamma": 0.3}),
    "JBOND, plain": (JBOND, {"n": 2, "num_anchor_samples": 4, "beta": 0.4, "gamma": 0.3, "variance_reduction": False}),
    "BOND": (BOND, {"n": 2, "quantiles": MonteCarlo(4), "exact_ties": True}),
    "BOND, learned": (BOND, {"n": 2, "quantiles": Learned(num_samples=1)}),
    "BestOfNSFT": (BestOfNSFT, {"n": 2}),
    "Reinforce": (Reinforce, {"num_samples": 3, "beta_rl": 0.2}),
}


class Judge:
    """Counts letters, and has nothing to say of a text that begins with `b` or `c`, nor where it is `silent`."""

    silent = False

    def __call__(self, prompts, completions):
        rewards = tiny.letters_reward(prompts, completions)
        pairs = zip(completions, rewards, strict=True)
        self.said = [None if self.silent or text[:1] in ("b", "c") else reward for text, reward in pairs]
        return self.said


def trainer_of(name, **kwargs):
    algorithm, settings = FAMILY[name]
    settings = {k: type(v).from_config(v.get_config()) if k == "quantiles" else v for k, v in settings.items()}
    policy = tiny.causal_lm(seed=1)
    settings |= {"optimizer": keras.optimizers.SGD(RATE), "algorithm": algorithm, **kwargs}
    trainer = make(policy, Judge(), **settings)
    tiny.perturb(policy, np.random.default_rng(2), 0.2)  # away from the anchor, so that no term vanishes
    return trainer


def values(variables):
    return [ops.convert_to_numpy(v.value) + 0 for v in variables]


def best_of(rewards, n):
    """The weight of each sample in the mean over the best of every choice of n that have a reward; None without one."""
    choices = [*itertools.combinations([i for i, r in enumerate(rewards) if r is not None], n)]
    weights = np.zeros(len(rewards))
    for chosen in choices:
        best = [i for i in chosen if rewards[i] == max(rewards[i] for i in chosen)]
        weights[best] += 1 / len(best) / len(choices)
    return weights if choices else None


def backward_reward(trainer, reward, anchor):
    """r_J or r_BOND of a sample, None where it cannot be told."""
    anchor, n = [r for r in anchor if r is not None], trainer.n
    if reward is None:
        return None
    if isinstance(trainer, JBOND):
        choices = [*itertools.combinations(anchor, n)]
        return -(2.0**n) * math.log(2) * np.mean([reward < min(c) for c in choices]) if choices else None
    if isinstance(trainer.quantiles, Learned):
        return math.log(0.5)  # what it says before it has learned
    if not anchor:
        return None
    less, less_equal = sum(r < reward for r in anchor), sum(r <= reward for r in anchor) + 1
    p, q = less / (len(anchor) + 1), less_equal / (len(anchor) + 1)
    return math.log((q**n - p**n) / (q - p)) / (n - 1)


def score_weights(returns, groups):
    """-(R_i - B_i) / count for each sample: B_i of the others of its group that have a return, 0 for who has none."""
    there = [i for i, r in enumerate(returns) if r is not None]
    weights = np.zeros(len(returns))
    for i in there:
        others = [returns[j] for j in there if groups[j] == groups[i] and j != i]
        weights[i] = -(returns[i] - (np.mean(others) if others else 0)) / len(there)
    return weights


def coefficients(trainer, said, scores, t):
    """What the gradient of each sample's log-prob is multiplied with in the update's: (policy's samples, contenders)."""
    m, k, size = trainer.num_samples, trainer.num_anchor_samples, BATCH
    own, anchor = said[: size * m], np.reshape(np.array(said[size * m :], object), (size, k)).tolist()
    prompt = np.repeat(np.arange(size), m)
    log_prob = ops.convert_to_numpy(scores.log_prob).astype("float64")
    log_ratio = log_prob - ops.convert_to_numpy(t.anchor_log_prob)
    if isinstance(trainer, Reinforce):
        returns = [None if r is None else r - trainer.beta_rl * lr for r, lr in zip(own, log_ratio, strict=True)]
        alone = [sum(returns[j] is not None for j in np.flatnonzero(prompt == p)) < 2 for p in prompt]
        return score_weights([None if a else r for a, r in zip(alone, returns, strict=True)], prompt), np.zeros((size, 0))

    beta, gamma = getattr(trainer, "beta", 0.0), getattr(trainer, "gamma", 0.0)
    weights = [best_of(row, trainer.n) for row in anchor]
    counting = sum(w is not None for w in weights)
    assert 0 < counting < size  # there are prompts of both kinds
    forward = np.zeros(scores.contender_log_prob.shape)
    ratio = None
    if scores.contender_anchor_log_prob is not None:
        ratio = np.exp(ops.convert_to_numpy(scores.contender_log_prob - scores.contender_anchor_log_prob))
    for i, (row, w) in enumerate(zip(anchor, weights, strict=True)):
        if w is None:
            continue
        if trainer.variance_reduction:
            there = np.array([r is not None for r in row])
            forward[i] = -(w - there * ratio[i] / there.sum()) / counting
        else:
            forward[i] = -1 / counting
    rewards = [None] * len(own)
    if beta:
        rewards = [backward_reward(trainer, r, anchor[p]) for r, p in zip(own, prompt, strict=True)]
    everywhere, scale = np.zeros(len(own)), trainer.n - 1
    returns = [None if r is None else scale * r - lr for r, lr in zip(rewards, log_ratio, strict=True)]
    distances = [None if r is None else -lr for r, lr in zip(rewards, log_ratio, strict=True)]
    backward = beta * score_weights(returns, everywhere) + gamma * score_weights(distances, everywhere)
    return backward, (1 - beta) * forward


@pytest.mark.parametrize("name", tiny.on_all_backends(["JBOND"], FAMILY))
def test_the_update_is_that_of_the_samples_that_have_a_reward(name):
    trainer, kept = trainer_of(name), []
    collect = trainer.collect
    trainer.collect = lambda *a: kept.append(collect(*a)) or kept[-1]
    groups = [trainer.policy.trainable_variables, trainer.anchor.shadows]
    start = [values(group) for group in groups]
    trainer.fit([tiny.PROMPT], batch_size=BATCH, verbose=0)
    change = np.concatenate([(a - b).ravel() for a, b in zip(values(groups[0]), start[0], strict=True)])
    for group, of_group in zip(groups, start, strict=True):
        for variable, value in zip(group, of_group, strict=True):
            variable.assign(value)

    t = Trajectory(*(field if field is None else ops.convert_to_tensor(field) for field in kept[0]))
    own, contenders = coefficients(trainer, trainer.reward.said, trainer.scores(t), t)
    own, contenders = own.astype("float32"), contenders.astype("float32")
    if not trainer.variance_reduction and contenders.size:  # its contender is the best of the first n that have a reward
        texts = trainer.rollout.decode(type("C", (), {"token_ids": t.contender_ids, "mask": t.contender_mask}))
        said = np.reshape(np.array(trainer.reward.said[BATCH * trainer.num_samples :], object), (BATCH, -1))
        for text, row, counts in zip(texts, said, contenders[:, 0] != 0, strict=True):
            first = [r for r in row if r is not None][: trainer.n]
            assert not counts or tiny.letters_reward(None, [text]) == [max(first)]

    factors = [ops.convert_to_tensor(c) for c in (own, contenders)]

    def surrogate():
        scores = trainer.scores(t)
        return ops.sum(factors[0] * scores.log_prob) + ops.sum(factors[1] * scores.contender_log_prob)

    gradients = tiny.gradients(surrogate, trainer.policy.trainable_variables)
    expected = -RATE * np.concatenate([np.ravel(g) for g in gradients])
    assert np.abs(expected).max() > 0.01
    summands = RATE * (np.abs(own).sum() + np.abs(contenders).sum())  # times slopes of log-probs, about 1
    np.testing.assert_allclose(change, expected, rtol=0, atol=tiny.ROUNDING * summands)


@pytest.mark.any_backend
def test_the_logs_are_of_the_samples_that_have_a_reward():
    trainer = trainer_of("JBOND")
    logs = {name: v[0] for name, v in trainer.fit([tiny.PROMPT], batch_size=BATCH, verbose=0).history.items()}
    said = np.array(trainer.reward.said, "float64")  # None becomes NaN
    own, anchor = said[: 2 * BATCH].reshape(BATCH, 2), said[2 * BATCH :].reshape(BATCH, 4)
    pairs = [[(r, a) for a in row if not np.isnan(a)] for mine, row in zip(own, anchor, strict=True) for r in mine]
    pairs = [each for each in pairs if each and not np.isnan(each[0][0])]
    expected = {
        "reward": np.nanmean(own),
        "reward_std": np.nanstd(own),
        "anchor_reward": np.nanmean(anchor),
        "abstained": np.isnan(said).mean(),
        "win_rate": np.mean([np.mean([(r > a) + 0.5 * (r == a) for r, a in each]) for each in pairs]),
        "tie_rate": np.mean([r == a for each in pairs for r, a in each]),
        "penalised": np.mean([np.mean([r < min(c) for c in itertools.combinations(row[~np.isnan(row)], 2)])
                              for mine, row in zip(own, anchor, strict=True) for r in mine
                              if not np.isnan(r) and (~np.isnan(row)).sum() >= 2]),
    }  # fmt: skip
    assert 0.1 < expected["abstained"] < 0.9
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-5, err_msg=name)
    assert np.isfinite([*logs.values()]).all()


@pytest.mark.parametrize("name", tiny.on_all_backends(["JBOND"], FAMILY))
def test_where_all_abstain_nothing_moves(name):
    trainer = trainer_of(name)
    trainer.reward.silent = True
    learned = list(getattr(getattr(trainer, "quantiles", None), "variables", []))
    before = [values(group) for group in (trainer.policy.trainable_variables, learned)]
    logs = {k: v[0] for k, v in trainer.fit([tiny.PROMPT], batch_size=BATCH, verbose=0).history.items()}
    assert (logs["abstained"], logs["loss"], logs["grad_norm"], logs["reward"]) == (1, 0, 0, 0)
    assert np.isfinite([*logs.values()]).all()
    for group, of_group in zip((trainer.policy.trainable_variables, learned), before, strict=True):
        for a, b in zip(values(group), of_group, strict=True):
            np.testing.assert_array_equal(a, b)
    trainer.reward.silent, said = False, []

    def keep(step, logs):
        trainer.reward.silent = step == 0
        said.append([float(logs[name]) for name in ("reward", "abstained")])

    keep = keras.callbacks.LambdaCallback(on_train_batch_end=keep)
    history = trainer.fit([tiny.PROMPT], batch_size=BATCH, steps_per_epoch=3, verbose=0, callbacks=[keep]).history
    (first, of_first), nothing, (last, of_last) = said  # it goes on, and what has no reward counts in no mean
    assert nothing == [0, 1]
    counted = (first * (1 - of_first) + last * (1 - of_last)) / (2 - of_first - of_last)
    assert history["reward"][0] == pytest.approx(counted, rel=1e-5, abs=1e-6)
    assert any((a != b).any() for a, b in zip(values(trainer.policy.trainable_variables), before[0], strict=True))


@pytest.mark.any_backend
def test_minus_infinity_is_the_worst_and_infinity_the_best():
    """The updates are those of any other numbers in this order; a mean says no more."""
    finite = lambda prompts, texts: [{"a": 1.0, "c": -1.0}.get(text[:1], 0.0) for text in texts]  # noqa: E731
    infinite = lambda prompts, texts: [math.inf * r if r else r for r in finite(prompts, texts)]  # noqa: E731
    trainers, logs = [], []
    for reward in (finite, infinite):
        trainers.append(make(tiny.causal_lm(), reward, optimizer=keras.optimizers.SGD(0.1), num_anchor_samples=3))
        logs.append(trainers[-1].fit([tiny.PROMPT], batch_size=8, steps_per_epoch=2, verbose=0).history)
    for a, b in zip(*(values(trainer.policy.variables) for trainer in trainers), strict=True):
        np.testing.assert_array_equal(a, b)
    for name in ("loss", "win_rate", "tie_rate", "penalised"):
        assert logs[0][name] == logs[1][name]


@pytest.mark.any_backend
def test_an_infinite_reward_has_an_infinite_mean():
    lowest = lambda prompts, texts: [-math.inf if "b" in text else 0.0 for text in texts]  # noqa: E731
    logs = make(tiny.causal_lm(), lowest, optimizer=keras.optimizers.SGD(0.1)).evaluate([tiny.PROMPT] * 16, verbose=0)
    assert (logs["reward"], logs["reward_std"], logs["abstained"]) == (-math.inf, math.inf, 0)


@pytest.mark.any_backend
def test_reinforce_refuses_infinity():
    trainer = make(tiny.causal_lm(), lambda prompts, texts: [0.0, -math.inf] * (len(texts) // 2), algorithm=Reinforce)
    with pytest.raises(RuntimeError, match=r"^The values of the rewards are used, .* Received: rewards from -inf to 0.0$"):
        trainer.fit([tiny.PROMPT], batch_size=8, verbose=0)
