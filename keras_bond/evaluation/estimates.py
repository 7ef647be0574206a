"""From samples to figures: every estimate with its 95 % interval."""

from typing import NamedTuple

import numpy as np
from keras import ops

from keras_bond.evaluation.best_of_n import backward_kl, forward_kl, mean_there, quantiles, there
from keras_bond.ops import frontier_efficiency, kl_efficiency

UNITS = {
    "reward": "reward",
    "reference_reward": "reward",
    "win_rate": "share",
    "kl": "nats",
    "kl_log_ratio": "nats",
    "frontier_efficiency": "share",
    "kl_efficiency": "share",
    "log_quantile": "nats",
    "forward_kl_best_of_n": "nats",
    "backward_kl_best_of_n": "nats",
    "completion_length": "tokens",
    "reference_completion_length": "tokens",
    "truncated": "share",
    "abstained": "share",
    "reference_abstained": "share",
    "distinct_1": "share",
    "distinct_2": "share",
    "reference_distinct_1": "share",
    "reference_distinct_2": "share",
}
"""Every estimate there is, in the order they are shown, with its unit."""

DISTINCT_GROUP = 16
_RESAMPLES = 1000


class Estimate(NamedTuple):
    """A mean with its 95 % bootstrap interval over prompts (over groups of them, for `distinct_1` and `distinct_2`).

    A single prompt, or group, has no interval: NaN. Nor has a mean that is infinite, or one of so few prompts that some
    resample has none of them.
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, means):
        """From a mean followed by the means of resamples, as `bootstrap` returns them."""
        low, high = np.quantile(means[1:], (0.025, 0.975)) if np.isfinite(means[0]) else (np.nan, np.nan)
        return cls(float(means[0]), float(low), float(high))


def estimate_all(samples, reference, seed=0, best_of_n=None):
    """Every figure of `evaluate` from the `Samples` of a policy and of its reference: dict of `Estimate` by name."""
    rewards, reference_rewards = there(samples.rewards), there(reference.rewards)
    ours, theirs = rewards[:, :, None], reference_rewards[:, None, :]
    per_prompt = {
        "reward": mean_there(rewards, axis=1),
        "reference_reward": mean_there(reference_rewards, axis=1),
        "win_rate": mean_there((ours > theirs) + 0.5 * (ours == theirs), axis=(1, 2)),
        "kl": samples.kl.mean(1),
        "kl_log_ratio": np.mean(samples.log_probs - samples.reference_log_probs, axis=1),
        "log_quantile": mean_there(np.log(quantiles(samples.rewards, reference.rewards, smoothing=1.0)[1]), axis=1),
        "completion_length": samples.lengths.mean(1),
        "reference_completion_length": reference.lengths.mean(1),
        "truncated": samples.truncated.mean(1),
        "abstained": np.isnan(samples.rewards).mean(1),
        "reference_abstained": np.isnan(reference.rewards).mean(1),
    }
    if best_of_n is not None:
        per_prompt["forward_kl_best_of_n"] = forward_kl(reference, best_of_n)
        per_prompt["backward_kl_best_of_n"] = backward_kl(samples, reference, best_of_n)
    means = bootstrap(per_prompt, [seed, 2])
    spent = (means["kl"] > 0) & ~np.isnan(means["win_rate"])  # nothing spent: nothing to be efficient with
    for name, function in (("frontier_efficiency", frontier_efficiency), ("kl_efficiency", kl_efficiency)):
        efficiency = ops.convert_to_numpy(function(means["win_rate"], np.where(spent, means["kl"], 1.0)))
        means[name] = np.where(spent, efficiency, np.nan)
    sources = (("", samples), ("reference_", reference))
    per_group = {f"{source}distinct_{n}": _distinct_per_group(s.texts[0], n) for source, s in sources for n in (1, 2)}
    means |= bootstrap(per_group, [seed, 3])
    return {name: Estimate.of(means[name]) for name in UNITS if name in means}


def distinct_n(texts, n):
    """Share of distinct word n-grams among all n-grams of these texts; 0 where there are none.

    It falls with the number of texts: compare groups of one size.

    >>> distinct_n(["so it was", "it was so"], 2)  # so it, it was (twice), was so
    0.75

    Source: Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models", NAACL 2016.
    """
    words = [text.split() for text in texts]
    grams = [tuple(w[i : i + n]) for w in words for i in range(len(w) - n + 1)]
    return len(set(grams)) / max(len(grams), 1)


def _distinct_per_group(texts, n):
    """Of whole groups alone, because the share depends on their size; fewer texts than a group are one."""
    whole = max(len(texts) // DISTINCT_GROUP, 1)
    return np.array([distinct_n(texts[i * DISTINCT_GROUP : (i + 1) * DISTINCT_GROUP], n) for i in range(whole)])


def bootstrap(values, seed):
    """(1 + resamples,) for each of `values`, all of one length: its mean, then the means of resamples.

    What is masked in a masked array counts in neither; NaN is a mean of nothing.
    """
    count = len(next(iter(values.values())))
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES) / count
    resamples = draws if count > 1 else np.full_like(draws, np.nan)
    results = {}
    for name, v in values.items():
        kept = ~np.ma.getmaskarray(v)
        with np.errstate(invalid="ignore"):  # 0 / 0, and 0 times minus infinity
            means = (resamples @ np.where(kept, np.ma.getdata(v), 0)) / (resamples @ kept)
        results[name] = np.append(np.ma.filled(mean_there(v), np.nan), means)
    return results
