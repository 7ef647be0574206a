"""A policy against its reference on held-out prompts."""

from typing import NamedTuple

import numpy as np
from keras import ops

from keras_bond.ops import frontier_efficiency, kl_efficiency, sequence_kl
from keras_bond.rewards import call_reward
from keras_bond.rollout import Program, PromptTable, Rollout, using, weights_of

_RESAMPLES = 1000


class Estimate(NamedTuple):
    """A mean with its 95 % bootstrap interval over prompts."""

    value: float
    low: float
    high: float


class Samples(NamedTuple):
    """k completions for each of P prompts, and what is known of them."""

    texts: list
    """k lists of P str."""
    rewards: np.ndarray
    """(P, k)."""
    lengths: np.ndarray
    """(P, k), tokens, the stop token included."""
    truncated: np.ndarray
    """(P, k), whether the budget ended before a stop token came."""
    kl: np.ndarray
    """(P, k), nats: exact per token along each sample; zeros for the reference itself."""


class Evaluation(NamedTuple):
    """The result of `evaluate`.

    estimates: dict of `Estimate` by name: `reward`, `reference_reward`, `win_rate` (ties half), `kl` (nats),
        `frontier_efficiency`, `kl_efficiency`, `completion_length` (tokens), `truncated` (share).
    """

    estimates: dict[str, Estimate]
    samples: Samples
    reference_samples: Samples


class Evaluator:
    """Compares a policy with its reference on the same prompts, as often as is asked; see `evaluate`.

    The reference's samples are drawn once. With `reference=None` it is the policy as it is now: a copy of its trainable
    variables, and the same compiled programs.

    Args:
        policy, reference, reward, prompts, num_samples, seed: see `evaluate`.
        num_reference_samples: samples of the reference per prompt.
        batch_size: prompts a compiled call.
        max_prompt_length, max_completion_length: tokens.
        temperature: > 0.
        rollout: a `Rollout` of `policy` whose compiled programs are used (then the lengths and temperature are its own).
    """

    def __init__(
        self,
        policy,
        reference,
        reward,
        prompts,
        *,
        num_samples=1,
        num_reference_samples=4,
        batch_size=64,
        max_prompt_length=64,
        max_completion_length=32,
        temperature=1.0,
        seed=0,
        rollout=None,
    ):
        for name, value in (("num_samples", num_samples), ("num_reference_samples", num_reference_samples)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be an integer of at least 1. Received: {name}={value!r}")
        self.policy, self.reward, self.seed = policy, reward, seed
        self.num_samples, self.batch_size = num_samples, batch_size
        self.rollout = rollout or Rollout(policy, max_prompt_length, max_completion_length, temperature)
        self.table = PromptTable(prompts, batch_size)
        if reference is None:
            self.reference_rollout = self.rollout
            self._snapshot: list | None = [ops.copy(v.value) for v in policy.trainable_variables]
        else:
            ours = self.rollout
            lengths = (ours.max_prompt_length, ours.max_completion_length, ours.temperature)
            self.reference_rollout = Rollout(reference, *lengths, ours.stop_token_ids)
            self._snapshot = None
        vocabularies = [r.causal_lm.backbone.token_embedding.input_dim for r in (self.rollout, self.reference_rollout)]
        if vocabularies[0] != vocabularies[1]:
            raise ValueError(
                f"`policy` and `reference` must share one vocabulary. Received sizes {vocabularies[0]} and {vocabularies[1]}"
            )
        self._divergence = Program(self._divergence_function)
        self._encoded = self.rollout.encode(self.table.prompts)
        self.reference_samples = self._draw(
            self.reference_rollout, self._reference_weights(), num_reference_samples, stream=0
        )

    def __call__(self, num_samples=None):
        """The present policy against the reference: an `Evaluation`."""
        samples = self._draw(
            self.rollout, weights_of(self.policy), num_samples or self.num_samples, stream=1, divergence=True
        )
        return Evaluation(_estimates(samples, self.reference_samples, self.seed), samples, self.reference_samples)

    def _reference_weights(self):
        # asked for anew each time: on JAX a training step may have replaced the arrays of frozen variables
        return weights_of(self.reference_rollout.causal_lm, self._snapshot)

    def _divergence_function(self, weights, reference_weights, prompt_ids, prompt_mask, completion_ids, mask):
        with using(self.rollout.causal_lm, weights):
            logits = self.rollout.completion_logits(prompt_ids, prompt_mask, completion_ids)
        with using(self.reference_rollout.causal_lm, reference_weights):
            reference_logits = self.reference_rollout.completion_logits(prompt_ids, prompt_mask, completion_ids)
        return sequence_kl(logits, reference_logits, mask, self.rollout.temperature)

    def _draw(self, rollout, weights, num_samples, stream, divergence=False):
        rng = np.random.default_rng([self.seed, stream])
        count, width = len(self.table.prompts), rollout.bucket(self._encoded)
        prompts, columns = self.table.rows(range(count))
        texts, columns_of_samples = [], []
        for _ in range(num_samples):
            parts = []
            for start in range(0, count, self.batch_size):
                rows = np.arange(start, start + self.batch_size) % count  # whole batches: one compiled program
                ids, mask = rollout.pad([self._encoded[i] for i in rows], width)
                ids, mask = ops.convert_to_tensor(ids), ops.convert_to_tensor(mask)
                uniforms = rng.random((self.batch_size, rollout.max_completion_length), "float32")
                completions = rollout.sample(weights, ids, mask, uniforms)
                kl = np.zeros(self.batch_size)
                if divergence:
                    arguments = (ids, mask, completions.token_ids, completions.mask)
                    kl = self._divergence(weights, self._reference_weights(), *arguments)
                token_ids, token_mask = (ops.convert_to_numpy(x) for x in completions[:2])
                unfinished = token_mask[:, -1] & ~np.isin(token_ids[:, -1], rollout.stop_token_ids)
                parts.append((rollout.decode(completions), token_mask.sum(1), unfinished, ops.convert_to_numpy(kl)))
            text, *arrays = (np.concatenate([np.asarray(p) for p in part])[:count] for part in zip(*parts, strict=True))
            texts.append([str(t) for t in text])
            columns_of_samples.append([call_reward(self.reward, prompts, texts[-1], columns), *arrays])
        return Samples(texts, *(np.stack(values, axis=1) for values in zip(*columns_of_samples, strict=True)))


def evaluate(policy, reference, reward, prompts, num_samples=1, seed=0, **kwargs):
    """Reward, win rate, sequence KL and efficiencies of a policy against its reference, on held-out prompts.

    Every sample of the policy meets every sample of the reference for the same prompt. The KL is exact per token along
    completions sampled from the policy (`ops.sequence_kl`). Intervals: 95 % percentile bootstrap over prompts.

    Args:
        policy, reference: KerasHub `CausalLM`s with the same vocabulary.
        reward: see `keras_bond.rewards`.
        prompts: anything that `fit` takes.
        num_samples: samples of the policy per prompt.
        seed: of the samples; the same uniforms on every backend.
        **kwargs: of `Evaluator`: `num_reference_samples` (4), `batch_size` (64, prompts a compiled call),
            `max_prompt_length` (64), `max_completion_length` (32), `temperature` (1.0).

    Returns:
        `Evaluation`.

    Example:

    ```python
    result = keras_bond.evaluation.evaluate(policy, reference, reward, prompts, max_prompt_length=16)
    result.estimates["win_rate"]  # Estimate(value=0.71, low=0.69, high=0.73)
    ```
    """
    return Evaluator(policy, reference, reward, prompts, num_samples=num_samples, seed=seed, **kwargs)()


def _estimates(samples, reference, seed):
    ours, theirs = samples.rewards[:, :, None], reference.rewards[:, None, :]
    per_prompt = {
        "reward": samples.rewards.mean(1),
        "reference_reward": reference.rewards.mean(1),
        "win_rate": np.mean((ours > theirs) + 0.5 * (ours == theirs), axis=(1, 2)),
        "kl": samples.kl.mean(1),
        "completion_length": samples.lengths.mean(1),
        "truncated": samples.truncated.mean(1),
    }
    count = len(samples.rewards)
    draws = np.random.default_rng([seed, 2]).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES) / count
    resampled = {name: draws @ values for name, values in per_prompt.items()}
    point = {name: values.mean(keepdims=True) for name, values in per_prompt.items()}
    for name, function in (("frontier_efficiency", frontier_efficiency), ("kl_efficiency", kl_efficiency)):
        for table in (point, resampled):
            spent = table["kl"] > 0
            value = ops.convert_to_numpy(function(table["win_rate"], np.where(spent, table["kl"], 1.0)))
            table[name] = np.where(spent, value, np.nan)  # nothing spent: nothing to be efficient with
    return {
        name: Estimate(float(value[0]), *(float(q) for q in np.quantile(resampled[name], (0.025, 0.975))))
        for name, value in point.items()
    }
