"""A policy against its reference on held-out prompts."""

import numpy as np
from keras import ops

from keras_bond._checks import check_at_least
from keras_bond.evaluation.best_of_n import check_best_of_n
from keras_bond.evaluation.estimates import estimate_all
from keras_bond.evaluation.samples import Evaluation, Samples
from keras_bond.evaluation.verified import check_ks, verified
from keras_bond.ops import sequence_log_prob, token_kl, token_log_probs
from keras_bond.rewards import call_reward, check_reward
from keras_bond.rollout import Program, Rollout, tokens_of, using, weights_of


class Evaluator:
    """Compares a policy with its reference on the same prompts, as often as is asked; see `evaluate`.

    The reference's samples are drawn once. With `reference=None` it is the policy as it is now: a copy of its trainable
    variables, and the same compiled programs. `best_of_n` has every call score the reference's samples under the policy.

    Args:
        policy, reference, reward, prompts, num_samples, seed: see `evaluate`.
        num_reference_samples: samples of the reference per prompt.
        best_of_n: N, to estimate the KLs to Best-of-N as well; needs more than N reference samples.
        batch_size: prompts a compiled call.
        max_prompt_length, max_completion_length: tokens.
        temperature: > 0.
        chat_template: `None`, `"auto"`, or what `keras_bond.data.chat.template` takes, for policy and reference alike.
        family: how policy and reference are run, `"auto"` or a name: see `families.of`.
        pass_at: whole numbers k, of at most `num_samples`, where the reward is a verifier: see `verified`; `None` for none.
        answer: of a completion, for the majority vote: see `verified`.
        rollout: a `Rollout` of `policy` whose compiled programs are used (then lengths, temperature, chat template,
            the policy's family and the prompts that are sampled at a time are its own).
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
        best_of_n=None,
        batch_size=64,
        max_prompt_length=64,
        max_completion_length=32,
        temperature=1.0,
        chat_template=None,
        family="auto",
        pass_at=None,
        answer=str.strip,
        seed=0,
        rollout=None,
    ):
        num_reference_samples = check_at_least(1, num_reference_samples=num_reference_samples)
        self.policy, self.reward, self.best_of_n = policy, reward, check_best_of_n(best_of_n, num_reference_samples)
        self.num_samples, self.batch_size = check_at_least(1, num_samples=num_samples, batch_size=batch_size)
        self.seed = check_at_least(0, seed=seed)
        self.pass_at, self.answer = None if pass_at is None else check_ks(pass_at, self.num_samples), answer
        lengths = max_prompt_length, max_completion_length, temperature
        self.rollout = rollout or Rollout(policy, *lengths, chat_template=chat_template, family=family)
        self.table, encoded = self.rollout.read(prompts)
        check_reward(reward, self.table.columns)
        if reference is None:
            self.reference_rollout = self.rollout
            self._snapshot: list | None = [ops.copy(v.value) for v in policy.trainable_variables]
        else:
            ours = self.rollout
            lengths = (ours.max_prompt_length, ours.max_completion_length, ours.temperature)
            same = {"long_prompts": ours.long_prompts, "chat_template": ours.chat, "family": family}
            self.reference_rollout = Rollout(reference, *lengths, ours.stop_token_ids, **same)
            self._snapshot = None
        vocabularies = [r.family.vocabulary_size for r in (self.rollout, self.reference_rollout)]
        if vocabularies[0] != vocabularies[1]:
            raise ValueError(
                f"`policy` and `reference` must share one vocabulary. Received sizes {vocabularies[0]} and {vocabularies[1]}"
            )
        if reference is not None and encoded != self.reference_rollout.encode(self.table.prompts):
            raise ValueError(
                "`policy` and `reference` must share one vocabulary: their tokenizers split the prompts differently."
            )
        self._batches = [*self._pad(encoded)]
        self._divergence = Program(self._divergence_function)
        weights = self._reference_weights()
        self.reference_samples = self._draw(self.reference_rollout, weights, num_reference_samples, 0, _of_the_reference)

    def __call__(self, num_samples=None):
        """The present policy against the reference: an `Evaluation`."""
        num_samples = self.num_samples if num_samples is None else check_at_least(1, num_samples=num_samples)
        weights, reference = weights_of(self.policy), self.reference_samples
        samples = self._draw(self.rollout, weights, num_samples, 1, self._against_the_reference)
        if self.best_of_n is not None:
            reference = reference._replace(log_probs=self._log_probs(weights, reference))
        estimates = estimate_all(samples, reference, self.seed, self.best_of_n)
        result = Evaluation(estimates, samples, reference, list(self.table.prompts))
        if self.pass_at is not None:
            estimates |= verified(result, self.pass_at, self.answer, self.seed)
        return result

    def _pad(self, encoded):
        """(rows, ids, mask) of each batch; all are whole, for one compiled program: the last goes on from the start."""
        width = self.rollout.bucket(encoded)
        for start in range(0, len(encoded), self.batch_size):
            rows = np.arange(start, start + self.batch_size) % len(encoded)
            yield rows, *map(ops.convert_to_tensor, self.rollout.pad([encoded[i] for i in rows], width))

    def _reference_weights(self):
        # asked for anew each time: on JAX a training step may have replaced the arrays of frozen variables
        return weights_of(self.reference_rollout.causal_lm, self._snapshot)

    def _draw(self, rollout, weights, num_samples, stream, measure):
        """`Samples`; `measure(weights, ids, mask, completions)` tells their kl and log-probs."""
        rng = np.random.default_rng([self.seed, stream])
        count = len(self.table.prompts)
        prompts, columns = self.table.rows(range(count))
        drawn = []
        for _ in range(num_samples):
            texts, tokens, parts = [], [], []
            for _, ids, mask in self._batches:
                uniforms = rng.random((self.batch_size, rollout.max_completion_length), "float32")
                completions = rollout.sample(weights, ids, mask, uniforms)
                texts += rollout.decode(completions)
                tokens += tokens_of(completions)
                parts.append((*measure(weights, ids, mask, completions), completions.token_ids, completions.mask))
            texts = texts[:count]
            *measured, token_ids, mask = (_rows(part, count) for part in zip(*parts, strict=True))
            truncated = mask[:, -1] & ~np.isin(token_ids[:, -1], rollout.stop_token_ids)
            rewards = call_reward(self.reward, prompts, texts, columns, tokens[:count])
            drawn.append((texts, rewards, mask.sum(1), truncated, *measured, token_ids, mask))
        all_texts, *arrays = zip(*drawn, strict=True)
        return Samples([*all_texts], *(np.stack(values, axis=1) for values in arrays))

    def _against_the_reference(self, weights, ids, mask, completions):
        return self._divergence(weights, self._reference_weights(), ids, mask, completions.token_ids, completions.mask)

    def _divergence_function(self, weights, reference_weights, prompt_ids, prompt_mask, completion_ids, mask):
        both = (self.rollout, weights), (self.reference_rollout, reference_weights)
        hidden = []
        for rollout, values in both:
            with using(rollout.causal_lm, values):
                hidden.append(rollout.hidden(prompt_ids, prompt_mask, completion_ids))

        def compare(token_ids, *hidden):
            logits = []
            for (rollout, values), h in zip(both, hidden, strict=True):
                with using(rollout.causal_lm, values):
                    logits.append(rollout.logits(h))
            temperature = self.rollout.temperature
            log_probs = (token_log_probs(x, token_ids, temperature) for x in logits)
            return token_kl(logits[0], logits[1], temperature), *log_probs

        by_token = self.rollout.by_position(compare, completion_ids, *hidden)
        return tuple(sequence_log_prob(values, mask) for values in by_token)

    def _log_probs(self, weights, samples):
        """(P, k): log pi(y|x) of samples that were drawn before."""
        columns = []
        for j in range(samples.token_ids.shape[1]):
            token_ids, token_mask = samples.token_ids[:, j], samples.mask[:, j]
            parts = [
                sequence_log_prob(self.rollout.score(weights, ids, mask, token_ids[rows]), token_mask[rows])
                for rows, ids, mask in self._batches
            ]
            columns.append(_rows(parts, len(token_ids)))
        return np.stack(columns, axis=1)


def _of_the_reference(weights, ids, mask, completions):
    log_probs = sequence_log_prob(completions.log_probs, completions.mask)
    return ops.zeros_like(log_probs), ops.full_like(log_probs, np.nan), log_probs


def _rows(parts, count):
    """The first `count` rows of batches of tensors, as an array."""
    return np.concatenate([ops.convert_to_numpy(part) for part in parts])[:count]


def evaluate(policy, reference, reward, prompts, num_samples=1, seed=0, best_of_n=None, **kwargs):
    """A policy against its reference on held-out prompts: reward, win rate, KL and what else tells them apart.

    Every sample of the policy meets every sample of the reference for the same prompt. Each estimate has a 95 % interval, by
    percentile bootstrap over prompts:

    | name | what it is |
    |---|---|
    | `reward`, `reference_reward` | means |
    | `win_rate` | of the policy's samples against the reference's, ties half |
    | `kl` | KL(pi || pi_ref) in nats, exact per token along the policy's samples (`ops.sequence_kl`) |
    | `kl_log_ratio` | the same from log pi(y) - log pi_ref(y) of the samples: unbiased as well, but noisier |
    | `frontier_efficiency`, `kl_efficiency` | see `ops`; NaN where the KL is 0 |
    | `log_quantile` | log p_<= of the policy's samples among the k of the reference, (count + 1)/(k + 1) |
    | `forward_kl_best_of_n`, `backward_kl_best_of_n` | KL(pi_BoN || pi) and KL(pi || pi_BoN) in nats, with `best_of_n` |
    | `completion_length`, `reference_completion_length` | tokens, the stop token included |
    | `truncated` | share of the policy's samples that the budget ended |
    | `abstained`, `reference_abstained` | share of the samples whose reward is `None` |
    | `distinct_1`, `distinct_2`, `reference_...` | share of distinct word n-grams, first samples of 16 prompts in a row |

    For `distinct_*` the bootstrap is over those groups of 16, less an incomplete last one. What depends on rewards is over
    the samples that have one, and the prompts that have such samples. One reward of minus infinity makes a mean of it.

    Args:
        policy, reference: KerasHub `CausalLM`s with the same vocabulary.
        reward: see `keras_bond.rewards`.
        prompts: anything that `fit` takes.
        num_samples: samples of the policy per prompt.
        seed: of the samples; the same uniforms on every backend.
        best_of_n: N, to estimate the KLs to Best-of-N as well; needs `num_reference_samples` above N (the paper: 32).
        **kwargs: of `Evaluator`: `num_reference_samples` (4), `batch_size` (64, prompts a compiled call),
            `max_prompt_length` (64), `max_completion_length` (32), `temperature` (1.0), `chat_template` (`None`), `family`
            ("auto"), `pass_at` (`None`) and `answer` (`str.strip`) where the reward is a verifier, see `verified`.

    Returns:
        `Evaluation`.

    Example:

    ```python
    result = keras_bond.evaluation.evaluate(policy, reference, reward, prompts, max_prompt_length=16)
    result.estimates["win_rate"]  # Estimate(value=0.71, low=0.69, high=0.73)
    result.save("samples.csv")  # every completion; `evaluation.load` gives the result back
    ```
    """
    return Evaluator(policy, reference, reward, prompts, num_samples=num_samples, seed=seed, best_of_n=best_of_n, **kwargs)()
