"""Problems with a known answer: softmax policies over a space small enough to enumerate, in float64 NumPy.

One prompt, K completions with fixed rewards. Every distribution, divergence and gradient is a sum over K terms, so the
algorithms can be followed without noise (`train` with the expected gradient) or with it (`batch_size=...`: the trainer's own
`objective` on samples). For teaching, and for tests of everything that is estimated elsewhere.

Example:

>>> from keras_bond import BOND
>>> rewards = np.arange(4.0)
>>> path = train(BOND, rewards, n=4)
>>> bool(kl(best_of_n(path.reference, rewards, 4), path.policies[-1]) < 1e-3)
True
"""

from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from keras import ops

from keras_bond.anchors import EMAAnchor, FrozenAnchor, PeriodicAnchor
from keras_bond.ops import expected_jbond_reward, frontier_efficiency
from keras_bond.rewards import compare, imitated
from keras_bond.rollout import Scores, Trajectory
from keras_bond.trainers import JBOND, BestOfNSFT, IterativeBOND, Reinforce
from keras_bond.trainers.backend import gradient

SETTINGS = {
    "n": 2,
    "beta": 0.5,
    "exact_ties": True,
    "gamma": 0.0,
    "beta_rl": 0.1,
    "num_samples": 1,
    "num_anchor_samples": None,
}
_ANCHORS = {JBOND: lambda eta=0.02: EMAAnchor(eta), IterativeBOND: lambda period=1000: PeriodicAnchor(period)}


class Path(NamedTuple):
    """What `train` went through; S updates, K completions."""

    reference: np.ndarray
    """(K,) probabilities."""
    rewards: np.ndarray
    """(K,)."""
    policies: np.ndarray
    """(S + 1, K) probabilities, the start included."""
    anchors: np.ndarray
    """(S + 1, K)."""


def quantiles(distribution, rewards):
    """(p_<, p_<=) of every completion, each (K,): P[r(y') < r(y)] and P[r(y') <= r(y)] for y' from `distribution` (K,).

    >>> [p.tolist() for p in quantiles(np.array([0.5, 0.25, 0.25]), np.array([0.0, 1.0, 1.0]))]
    [[0.0, 0.5, 0.5], [0.5, 1.0, 1.0]]
    """
    distribution, rewards = np.asarray(distribution, "float64"), np.asarray(rewards)
    below, equal = rewards[None] < rewards[:, None], rewards[None] == rewards[:, None]
    return below @ distribution, (below | equal) @ distribution


def best_of_n(distribution, rewards, n):
    """pi_BoN (K,), Theorem 1 of the paper: pi(y) (p_<=^n - p_<^n) / (p_<= - p_<).

    >>> best_of_n(np.array([0.5, 0.5]), np.array([0.0, 1.0]), 2).tolist()
    [0.25, 0.75]
    """
    less, less_equal = quantiles(distribution, rewards)
    return distribution * (less_equal**n - less**n) / (less_equal - less)


def kl(p, q):
    """KL(p || q) in nats.

    >>> kl(np.array([1.0, 0.0]), np.array([0.5, 0.5])) == float(np.log(2))
    True
    """
    p, q = np.asarray(p, "float64"), np.asarray(q, "float64")
    held = p > 0
    return float(np.sum(p[held] * (np.log(p[held]) - np.log(q[held]))))


def win_rate(p, q, rewards):
    """P[r(y) > r(y')] + P[r(y) = r(y')] / 2 for y ~ p, y' ~ q.

    >>> win_rate(np.array([0.25, 0.75]), np.array([0.5, 0.5]), np.array([0.0, 1.0]))
    0.625
    """
    return float(p @ np.mean(quantiles(q, rewards), axis=0))


def expected_gradient(algorithm, logits, anchor_logits, rewards, **settings):
    """The gradient that `algorithm` descends, in expectation, with respect to the logits: (K,), by enumeration.

    Every algorithm's G is a weighted score, G = sum_y w(y) grad log pi(y), and for a softmax that is w - pi sum(w).

    Args:
        algorithm: `BOND`, `IterativeBOND`, `JBOND`, `BestOfNSFT` or `Reinforce`.
        logits, anchor_logits: (K,); the anchor is the reference for `BOND`, `BestOfNSFT` and `Reinforce`.
        rewards: (K,).
        **settings: of the algorithm: `n`, `beta`, `gamma`, `exact_ties`, `beta_rl`.
    """
    s = SimpleNamespace(**{**SETTINGS, **settings})
    log_pi, log_anchor = _log_softmax(logits), _log_softmax(anchor_logits)
    pi, anchor, log_ratio = np.exp(log_pi), np.exp(log_anchor), log_pi - log_anchor
    less, less_equal = quantiles(anchor, rewards)
    if issubclass(algorithm, Reinforce):
        weight = -pi * (rewards - s.beta_rl * log_ratio)
    elif issubclass(algorithm, BestOfNSFT):
        weight = -best_of_n(anchor, rewards, s.n)
    else:
        if issubclass(algorithm, JBOND):
            reward = ops.convert_to_numpy(expected_jbond_reward(less_equal, s.n))
        elif s.exact_ties:
            reward = np.log((less_equal**s.n - less**s.n) / (less_equal - less)) / (s.n - 1)
        else:
            reward = np.log(less_equal)
        forward, backward = -best_of_n(anchor, rewards, s.n), -pi * ((s.n - 1) * reward - log_ratio)
        weight = (1 - s.beta) * forward + s.beta * backward + s.gamma * pi * log_ratio
    return weight - pi * weight.sum()


def sampled_gradient(algorithm, logits, anchor_logits, rewards, batch_size, rng, **settings):
    """The same gradient, estimated as the trainer does: its own `objective` on `batch_size` sampled prompts.

    Quantiles are exact, so that the estimate is unbiased for `expected_gradient`.

    Args:
        algorithm, logits, anchor_logits, rewards, **settings: see `expected_gradient`; and, per prompt, `num_samples` of the
            policy and `num_anchor_samples`, n by default.
        batch_size: prompts.
        rng: `numpy.random.Generator`.

    Returns:
        (K,).
    """
    defaults = SETTINGS | ({"num_samples": 2} if issubclass(algorithm, Reinforce) else {})
    s = SimpleNamespace(**{**defaults, **settings})
    log_pi, log_anchor = _log_softmax(logits), _log_softmax(anchor_logits)
    count, rewards = len(rewards), np.asarray(rewards)
    y = rng.choice(count, batch_size * s.num_samples, p=np.exp(log_pi))
    anchor = rng.choice(count, (batch_size, s.num_anchor_samples or s.n), p=np.exp(log_anchor))
    p_less, p_less_equal = quantiles(np.exp(log_anchor), rewards)
    scored = np.concatenate([rewards[y], rewards[anchor].ravel()])
    fields = compare(scored, s.num_samples, anchor.shape[1], algorithm.relative)
    fields |= {"anchor_log_prob": log_anchor[y], "reference_log_prob": log_anchor[y]}
    fields |= {"p_less": p_less[y], "p_less_equal": p_less_equal[y]}
    fields["contender_weights"] = imitated(fields["relative_anchor_rewards"][:: s.num_samples], s.n)[1]
    fields = {name: ops.cast(ops.convert_to_tensor(value), "float32") for name, value in fields.items()}
    trajectory = Trajectory(**dict.fromkeys(Trajectory._fields) | fields)

    contender_anchor_log_prob = ops.convert_to_tensor(log_anchor[anchor].astype("float32"))

    def loss(logits):
        log_probs = ops.log_softmax(logits)
        log_prob, contender_log_prob = (ops.take(log_probs, indices.astype("int32")) for indices in (y, anchor))
        scores = Scores(log_prob, contender_log_prob, contender_anchor_log_prob)
        return algorithm.objective(s, scores, trajectory)[0]

    return ops.convert_to_numpy(gradient(loss, ops.convert_to_tensor(np.asarray(logits, "float32")))).astype("float64")


def train(
    algorithm, rewards, reference=None, steps=500, learning_rate=0.1, batch_size=None, seed=0, natural=None, **settings
):
    """Gradient descent on the logits, from the reference.

    Args:
        algorithm: `BOND`, `IterativeBOND`, `JBOND`, `BestOfNSFT` or `Reinforce`, the class.
        rewards: (K,).
        reference: (K,) probabilities; uniform by default.
        steps: S, updates.
        learning_rate: a number, or a function of the step 0 ... S - 1.
        batch_size: prompts an update, for the sampled gradient; `None` for the expected one.
        seed: of the samples.
        natural: whether to divide the gradient by pi, which for a softmax is the natural gradient (inverse Fisher
            information times gradient): all completions converge at the same rate, the rare ones too. By default so for the
            expected gradient alone: a sample of a rare completion, divided by pi, would throw the policy far. The plain
            gradient wants a learning rate about ten times larger.
        **settings: of the algorithm: `n`, `beta`, `gamma`, `exact_ties`, `beta_rl`, `num_samples`, `eta`, `period`.

    Returns:
        `Path`.
    """
    rewards, rng = np.asarray(rewards, "float64"), np.random.default_rng(seed)
    reference = np.full(len(rewards), 1 / len(rewards)) if reference is None else np.asarray(reference, "float64")
    moves = {name: settings.pop(name) for name in ("eta", "period") if name in settings}
    anchor = _ANCHORS.get(algorithm, FrozenAnchor)(**moves)
    natural = batch_size is None if natural is None else natural
    rate = learning_rate if callable(learning_rate) else lambda step: learning_rate
    theta = shadow = np.log(reference)
    path = [(theta, shadow)]
    for step in range(steps):
        if batch_size is None:
            slope = expected_gradient(algorithm, theta, shadow, rewards, **settings)
        else:
            slope = sampled_gradient(algorithm, theta, shadow, rewards, batch_size, rng, **settings)
        theta = theta - rate(step) * (slope / np.exp(_log_softmax(theta)) if natural else slope)
        shadow = shadow + float(anchor.rate(step + 1)) * (theta - shadow)
        path.append((theta, shadow))
    policies, anchors = np.exp(_log_softmax(np.array(path))).transpose(1, 0, 2)
    return Path(reference, rewards, policies, anchors)


def progress(path, n=None):
    """Figures along a path, each an array (S + 1,).

    Returns:
        dict: `reward`, `win_rate`, `kl` and `frontier_efficiency` against the reference (the latter NaN at KL 0), and, with
        `n`, `forward_kl` = KL(pi_BoN || pi) and `backward_kl` = KL(pi || pi_BoN).
    """
    figures = {
        "reward": path.policies @ path.rewards,
        "win_rate": np.array([win_rate(p, path.reference, path.rewards) for p in path.policies]),
        "kl": np.array([kl(p, path.reference) for p in path.policies]),
    }
    spent = figures["kl"] > 1e-9
    efficiency = frontier_efficiency(figures["win_rate"], np.where(spent, figures["kl"], 1.0))
    figures["frontier_efficiency"] = np.where(spent, ops.convert_to_numpy(efficiency), np.nan)
    if n is not None:
        target = best_of_n(path.reference, path.rewards, n)
        figures["forward_kl"] = np.array([kl(target, p) for p in path.policies])
        figures["backward_kl"] = np.array([kl(p, target) for p in path.policies])
    return figures


def _log_softmax(logits):
    logits = np.asarray(logits, "float64")
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
