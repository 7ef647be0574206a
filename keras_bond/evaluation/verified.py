"""Where the reward is a verifier, 1 for a right answer and 0 for a wrong one: pass@k, majority vote, what accuracy costs."""

import collections
import math

import numpy as np
from keras import ops

from keras_bond._checks import check_at_least
from keras_bond.evaluation.best_of_n import mean_there, there
from keras_bond.evaluation.estimates import Estimate, bootstrap
from keras_bond.ops import accuracy_kl


def pass_at(correct, k):
    """pass@k of each prompt: the chance that one of k samples is right, unbiased from m >= k samples of which c are.

        1 - C(m - c, k) / C(m, k)

    Args:
        correct: (P, m), 1 or 0; NaN is a sample that the verifier abstained from.
        k: at least 1.

    Returns:
        (P,) masked array, without the prompts of fewer than k samples.

    Example:

    >>> pass_at(np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), 2).round(4).tolist()
    [0.6667, 0.0]

    Source: Chen et al., "Evaluating Large Language Models Trained on Code" (arXiv 2107.03374), equation 1.
    """
    there = ~np.isnan(correct)
    m, c = there.sum(axis=1), np.where(there, correct, 0).sum(axis=1).astype(int)
    values = [
        math.nan if total < k else 1 - math.comb(total - right, k) / math.comb(total, k)
        for total, right in zip(m.tolist(), c.tolist(), strict=True)
    ]
    return np.ma.masked_invalid(values)


def majority(correct, answers):
    """Whether the answer that most samples of a prompt give is right; of answers that are given equally often, their mean.

    Args:
        correct: (P, m), 1 or 0; NaN is a sample that has no vote.
        answers: P lists of m, hashable; `None` is no answer, and has no vote either.

    Returns:
        (P,) masked array, without the prompts where nobody votes.

    Example:

    >>> majority(np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), [["4", "5", "5"], ["4", "5", "6"]]).round(4).tolist()
    [0.0, 0.3333]

    Source: Wang et al., "Self-Consistency Improves Chain of Thought Reasoning" (arXiv 2203.11171).
    """
    values = []
    for row, given in zip(correct, answers, strict=True):
        votes = collections.defaultdict(list)
        for value, answer in zip(row.tolist(), given, strict=True):
            if answer is not None and not math.isnan(value):
                votes[answer].append(value)
        most = max(map(len, votes.values()), default=0)
        values.append(np.mean([np.mean(of) for of in votes.values() if len(of) == most]) if votes else math.nan)
    return np.ma.masked_invalid(values)


def verified(evaluation, ks=(1,), answer=str.strip, seed=0):
    """The figures of a verifier, from the samples of an `Evaluation`: each with its 95 % interval over prompts.

    | name | what it is |
    |---|---|
    | `pass@k`, `reference_pass@k` | the chance that one of k samples is right; pass@1 is the accuracy |
    | `majority@m`, `reference_majority@m` | whether the most frequent of all m answers is right |
    | `accuracy_kl_efficiency` | `ops.accuracy_kl` of the two accuracies, over the KL that was spent; NaN where it is 0 |

    The last is a lower bound: per prompt the accuracies lie further apart than their means.

    Args:
        evaluation: an `Evaluation`, whose rewards are 0, 1 or NaN.
        ks: whole numbers, each at most the number of the policy's samples. The reference has those that it has samples for.
        answer: function of a completion to what votes, hashable; `None` has no vote. `lambda text: text.split()[-1]`, say.
        seed: of the bootstrap.

    Returns:
        Dict of `Estimate` by name.

    Raises:
        ValueError: if a reward is neither 0 nor 1, or there are too few samples.

    Example:

    ```python
    result = keras_bond.evaluation.evaluate(policy, reference, verifier, prompts, num_samples=8, pass_at=(1, 8))
    result.estimates["pass@8"]
    ```
    """
    ks = check_ks(ks, evaluation.samples.rewards.shape[1])
    per_prompt: dict = {}
    for source, samples in (("", evaluation.samples), ("reference_", evaluation.reference_samples)):
        correct = samples.rewards
        if wrong := sorted({*correct[~np.isnan(correct)].tolist()} - {0.0, 1.0}):
            raise ValueError(f"`pass_at` needs a verifier, whose rewards are 0 and 1. Received: a reward of {wrong[0]}")
        m = correct.shape[1]
        per_prompt |= {f"{source}pass@{k}": pass_at(correct, k) for k in ks if k <= m}
        answers = [[answer(texts[i]) for texts in samples.texts] for i in range(len(correct))]
        per_prompt[f"{source}majority@{m}"] = majority(correct, answers)
    accuracies = [mean_there(there(s.rewards), axis=1) for s in (evaluation.samples, evaluation.reference_samples)]
    measured = {"accuracy": accuracies[0], "base": accuracies[1], "kl": evaluation.samples.kl.mean(1)}
    means = bootstrap(per_prompt | measured, [seed, 4])
    accuracy, base, kl = (means.pop(name) for name in measured)
    with np.errstate(divide="ignore", invalid="ignore"):
        needed = ops.convert_to_numpy(accuracy_kl(accuracy, base))
        means["accuracy_kl_efficiency"] = np.where(kl > 0, needed / np.where(kl > 0, kl, 1), np.nan)
    return {name: Estimate.of(values) for name, values in means.items()}


def check_ks(ks, most):
    """`pass_at` as a tuple of whole numbers from 1 to `most`, the policy's samples a prompt."""
    ks = tuple(check_at_least(1, pass_at=k) for k in (ks if isinstance(ks, list | tuple) else [ks]))
    if not ks or max(ks) > most:
        raise ValueError(
            f"`pass_at` must be whole numbers of at most `num_samples`={most}, the policy's samples for each prompt. "
            f"Received: pass_at={ks}"
        )
    return ks
