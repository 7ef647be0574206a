"""Best-of-N sampling at inference: the baseline that the trainers distil."""

from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_bond._checks import check_at_least
from keras_bond.rewards import call_reward, check_reward
from keras_bond.rollout import Completions, Rollout, tokens_of, weights_of


class BestOfNSamples(NamedTuple):
    """What `BestOfNSampler.generate` returns for P prompts."""

    completions: list
    """P str, the best of each prompt's n candidates."""
    rewards: np.ndarray
    """(P,) float64, their rewards: NaN where that of every candidate abstained."""
    candidates: list | None = None
    """P lists of n str in the order drawn, where they were asked for."""
    candidate_rewards: np.ndarray | None = None
    """(P, n) float64, NaN where the reward abstained, where the candidates were asked for."""


class BestOfNSampler:
    """Draws n completions per prompt and keeps the best by the reward, the first of equals.

        y = argmax_{y_i} r(x, y_i),  y_1 ... y_n ~ pi(. | x)        so that  y ~ pi_BoN (`ops.best_of_n_log_ratio`)

    Without ties it beats one sample with probability n/(n + 1), at log n - (n - 1)/n nats of KL and n times the price.
    Candidates whose reward abstains are not among the best; where all of a prompt do, its first is kept, with reward NaN.
    The P * n pairs of prompt and candidate are one stream of rows, which passes through one compiled program in batches:
    memory does not grow with n, and one prompt with n = 256 is batched as well as 256 prompts with n = 1.

    Args:
        policy: a KerasHub `CausalLM`; each call of `generate` uses its weights as they are then.
        reward: see `keras_bond.rewards`; called once a batch, with that batch's rows.
        n: candidates per prompt, at least 1.
        max_prompt_length, max_completion_length: tokens.
        temperature: > 0.
        stop_token_ids: `"auto"` (the tokenizer's) or a sequence of ids.
        chat_template: `None`, `"auto"`, or what `keras_bond.data.chat.template` takes: see `Rollout`.
        family: how the policy is run, `"auto"` or a name: see `families.of`.
        batch_size: rows a compiled call; the last batch is filled up with repetitions, which are thrown away.
        seed: of the samples, an integer of at least 0. Call c of `generate` (from 0) draws from stream (seed, c): other
            samples each time; the same, to rounding, in a new sampler, on every backend and at every `batch_size`.
            A call that fails does not count.
        rollout: a `Rollout` of `policy` whose compiled programs are used, such as a trainer's (then the lengths, the
            temperature, the stop tokens, the chat template, the family and the prompts that are sampled at a time are its
            own).

    Raises:
        ValueError: if the model is not supported or an argument is out of range.

    Example:

    ```python
    policy = keras_hub.models.CausalLM.from_preset(keras_bond.presets.path("tiny_gemma"))
    sampler = keras_bond.BestOfNSampler(policy, keras_bond.rewards.VaderSentiment(), n=16)
    sampler.generate(["The film was"]).completions  # [" a great success ..."]
    ```

    Source: BOND, Theorem 1 and its baseline "Best-of-N sampling".
    """

    def __init__(
        self,
        policy,
        reward,
        n,
        *,
        max_prompt_length=64,
        max_completion_length=32,
        temperature=1.0,
        stop_token_ids="auto",
        chat_template=None,
        family="auto",
        batch_size=64,
        seed=0,
        rollout=None,
    ):
        check_reward(reward)
        self.policy, self.reward = policy, reward
        self.n, self.batch_size = check_at_least(1, n=n, batch_size=batch_size)
        self.seed = check_at_least(0, seed=seed)
        lengths = max_prompt_length, max_completion_length
        how = {"chat_template": chat_template, "family": family}
        self.rollout = rollout or Rollout(policy, *lengths, temperature, stop_token_ids, **how)
        self._calls = 0

    def generate(self, prompts, keep_candidates=False, verbose=1):
        """The best of n completions for each prompt.

        Args:
            prompts: what `keras_bond.data.Table` takes. Further columns reach the reward.
            keep_candidates: whether to return all n candidates of each prompt too.
            verbose: 1 shows a progress bar over batches, 0 nothing.

        Returns:
            `BestOfNSamples`.

        Raises:
            ValueError: for prompts that are empty, not text, or too long, or a reward that needs a column they lack.
            RewardError: if the reward fails.
        """
        rollout, weights = self.rollout, weights_of(self.policy)
        table, encoded = rollout.read(prompts)
        check_reward(self.reward, table.columns)
        count, width = len(encoded), rollout.bucket(encoded)
        best: list = [None] * count
        best_rewards = np.full(count, np.nan)
        kept: list = [[] for _ in range(count if keep_candidates else 0)]

        rng = np.random.default_rng([self.seed, self._calls])
        starts = range(0, count * self.n, self.batch_size)
        progress = keras.utils.Progbar(len(starts), verbose=verbose, unit_name="batch")
        for start in starts:
            rows = np.arange(start, min(start + self.batch_size, count * self.n)) // self.n  # candidate -> its prompt
            uniforms = rng.random((len(rows), rollout.max_completion_length), "float32")
            full = np.resize(np.arange(len(rows)), self.batch_size)  # whole batches: one compiled program
            ids, mask = rollout.pad([encoded[i] for i in rows[full]], width)
            sampled = rollout.sample(weights, ids, mask, uniforms[full])
            sampled = Completions(*(ops.convert_to_numpy(field)[: len(rows)] for field in sampled))
            texts, (batch_prompts, columns) = rollout.decode(sampled), table.rows(rows)
            rewards = call_reward(self.reward, batch_prompts, texts, columns, tokens_of(sampled))
            for i, text, reward in zip(rows, texts, rewards, strict=True):
                if best[i] is None or not (np.isnan(reward) or reward <= best_rewards[i]):
                    best[i], best_rewards[i] = text, reward
                if keep_candidates:
                    kept[i].append((text, reward))
            progress.add(1)
        self._calls += 1

        if not keep_candidates:
            return BestOfNSamples(best, best_rewards)
        candidates = [[text for text, _ in row] for row in kept]
        return BestOfNSamples(best, best_rewards, candidates, np.array([[reward for _, reward in row] for row in kept]))
