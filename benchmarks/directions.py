"""How much of the frontier's gain can a step have that is made from so many completions? The natural gradient's, held out.

    python benchmarks/directions.py
    python benchmarks/directions.py --train embedding --iterations 2

On JAX and the bundled model, at its start, with the reward of the demo. Let u(y) be the quantile of a completion's reward
under the reference, centred within its prompt, and s_d(y) = d/de log pi_{theta + e d}(y) of a direction d of the weights. To
first order the step e d costs KL = e^2 Var(s_d) / 2 and gains e Cov(u, s_d) in win rate, and no policy at that KL gains more
than sqrt(2 KL Var(u)). So the squared correlation of u and s_d is the KL efficiency of small steps along d, and its root
their frontier efficiency.

The least-squares problem min_d sum (u - s_d)^2 over the training completions has the policy gradient as its first
direction of conjugate gradients (here with the rows' scales of `RowwiseSGD`, damping 1, with and without its shrinkage) and
the natural gradient of these completions as its solution; the number of iterations is what regularises it. Every iteration
is judged on completions of prompts that were held out, their quantiles among 32.

For comparison, how much of the held-out quantiles does a reward model explain that knows a worth for every token, by least
squares on the same completions? Prints a table and writes `directions-TRAIN.json` beside this file.
"""

import argparse
import json
import os
import pathlib
import time

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import numpy as np
from common import print_table, provenance, use_keras_products
from step import bundled

from keras_bond import presets
from keras_bond.experiments.align import PRESET, SIZES
from keras_bond.experiments.provenance import versions
from keras_bond.ops import sequence_log_prob, win_rate
from keras_bond.rewards import VaderSentiment
from keras_bond.rollout import Rollout, using, weights_of


class Problem:
    """Completions of the reference with their centred quantiles, and the linear map from directions to scores.

    Args:
        policy: a `CausalLM`, at its start.
        prompts: list of str.
        samples: completions a prompt.
        batch_size: prompts at a time.
        rng: `numpy.random.Generator`.
        ranked_among: completions a prompt that the quantiles are among; `samples` by default.
    """

    def __init__(self, policy, prompts, samples, batch_size, rng, ranked_among=None):
        rollout = Rollout(policy, **SIZES)
        use_keras_products(policy)  # ours have no forward-mode derivative
        start, reward = weights_of(policy), VaderSentiment()
        self.start, self.batches, quantiles = start.trainable, [], []
        for i in range(0, len(prompts), batch_size):
            texts = prompts[i : i + batch_size]
            prompt = rollout.pad(rollout.encode(texts), SIZES["max_prompt_length"])
            drawn = ranked_among or samples
            uniforms = rng.random((len(texts), drawn, SIZES["max_completion_length"]), "float32")
            (completions,) = rollout.sample_each([(start, uniforms)], *prompt)
            rewards = np.asarray(reward(np.repeat(texts, drawn).tolist(), rollout.decode(completions)), "float32")
            of_prompt = np.repeat(rewards.reshape(-1, drawn), drawn, axis=0)
            ranked = np.reshape(win_rate(rewards, of_prompt), (-1, drawn))[:, :samples]
            quantiles.append(ranked - ranked.mean(axis=1, keepdims=True))
            kept = np.arange(len(rewards)) % drawn < samples
            self.batches.append((*prompt, np.asarray(completions.token_ids)[kept], np.asarray(completions.mask)[kept]))
        self.quantiles = np.concatenate(quantiles)

        def log_probs(trainable, prompt_ids, prompt_mask, token_ids, mask):  # centred within each prompt
            with using(policy, start._replace(trainable=trainable)):
                log_prob = sequence_log_prob(rollout.token_log_probs(prompt_ids, prompt_mask, token_ids), mask)
            log_prob = jnp.reshape(log_prob, (-1, samples))
            return log_prob - jnp.mean(log_prob, axis=1, keepdims=True)

        self._push = jax.jit(lambda d, *batch: jax.jvp(lambda w: log_probs(w, *batch), (self.start,), (d,))[1])
        self._pull = jax.jit(lambda c, *batch: jax.vjp(lambda w: log_probs(w, *batch), self.start)[1](c)[0])

    def scores(self, direction):
        """s_d of every completion, (prompts, samples)."""
        return np.concatenate([np.asarray(self._push(direction, *batch)) for batch in self.batches])

    def token_counts(self, vocabulary_size):
        """How often each token is in each completion, centred within its prompt: (completions, vocabulary)."""
        counts = np.zeros((self.quantiles.size, vocabulary_size), "float32")
        ids, mask = (np.concatenate([batch[i] for batch in self.batches]) for i in (2, 3))
        np.add.at(counts, (np.arange(len(ids))[:, None], ids), mask.astype("float32"))
        of_prompt = counts.reshape(*self.quantiles.shape, -1)
        return (of_prompt - of_prompt.mean(axis=1, keepdims=True)).reshape(counts.shape)

    def gradient(self, coefficients):
        """(sum of c(y) grad log pi(y), row by row its square's mean over the batches): lists of one array a variable."""
        parts = np.split(coefficients, np.cumsum([len(batch[0]) for batch in self.batches])[:-1])
        total, squares = 0, 0
        for part, batch in zip(parts, self.batches, strict=True):
            gradient = self._pull(part, *batch)
            total = jax.tree.map(jnp.add, total or jax.tree.map(jnp.zeros_like, gradient), gradient)
            now = [jnp.mean(jnp.square(_rows(g)), axis=1) for g in gradient]
            squares = jax.tree.map(jnp.add, squares or jax.tree.map(jnp.zeros_like, now), now)
        return total, squares


def _rows(array):
    return jnp.reshape(array, (array.shape[0] if array.ndim > 1 else 1, -1))


def share(problem, scores):
    """(squared correlation of quantiles and scores, its bootstrapped standard error over prompts)."""
    u, s = problem.quantiles, scores
    sums = np.stack([(u * s).sum(1), (u * u).sum(1), (s * s).sum(1)])  # (3, prompts)
    picked = np.random.default_rng(0).integers(sums.shape[1], size=(200, sums.shape[1]))
    us, uu, ss = np.concatenate([sums.sum(1)[:, None], sums[:, picked].sum(2)], axis=1)
    shares = np.sign(us) * us**2 / (uu * ss)
    return shares[0], shares[1:].std()


def directions(problem, damping, shrinkage):
    """Yields (direction, its scores): what conjugate gradients have after 1, 2, ... iterations."""
    residual = problem.quantiles
    gradient, squares = problem.gradient(residual)
    signals = [jnp.mean(jnp.square(_rows(g)), axis=1) for g in gradient]
    scales = [
        jnp.mean(s) * damping / (jnp.mean(s) * damping + s) * jnp.nan_to_num(signal / (signal + shrinkage * s))
        for signal, s in zip(signals, squares, strict=True)
    ]

    def scaled(gradient):
        return [jnp.reshape(_rows(g) * scale[:, None], g.shape) for g, scale in zip(gradient, scales, strict=True)]

    def inner(a, b):
        return float(sum(jnp.vdot(x, y) for x, y in zip(a, b, strict=True)))

    step = scaled(gradient)
    size = inner(gradient, step)
    direction, scores = [jnp.zeros_like(g) for g in gradient], np.zeros_like(residual)
    while True:
        along = problem.scores(step)
        length = size / np.vdot(along, along)
        direction = [d + length * p for d, p in zip(direction, step, strict=True)]
        scores = scores + length * along
        yield direction, scores
        gradient, _ = problem.gradient(problem.quantiles - scores)
        turned = scaled(gradient)
        size, before = inner(gradient, turned), size
        step = [t + size / before * p for t, p in zip(turned, step, strict=True)]


def figures(problem, scores, judge, held_out_scores):
    """The shares of the quantiles that the scores have, fitted and held out."""
    (fitted, _), (held_out, error) = share(problem, scores), share(judge, held_out_scores)
    return {"fitted": float(fitted), "held_out": float(held_out), "standard_error": float(error)}


def linear_reward_model(problem, judge, vocabulary_size, ridge=3.0):
    """`figures` of a worth for every token, by least squares."""
    counts, held_out = (p.token_counts(vocabulary_size) for p in (problem, judge))
    worth = np.linalg.solve(counts.T @ counts + ridge * np.eye(vocabulary_size), counts.T @ problem.quantiles.ravel())
    return figures(
        problem, (counts @ worth).reshape(problem.quantiles.shape), judge, (held_out @ worth).reshape(judge.quantiles.shape)
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", choices=("all", "embedding"), default="all", help="the weights that move")
    parser.add_argument("--prompts", type=int, default=4096, help="for the directions")
    parser.add_argument("--held-out", type=int, default=512, help="prompts")
    parser.add_argument("--samples", type=int, default=8, help="completions a prompt")
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--damping", type=float, default=1.0)
    parser.add_argument("--shrinkage", type=float, nargs="+", default=[0.0, 3.0])
    parser.add_argument("--batch-size", type=int, default=64, help="prompts")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    policy, rng = bundled(), np.random.default_rng(arguments.seed)
    if arguments.train == "embedding":
        for layer in policy.backbone.layers:
            layer.trainable = layer is policy.backbone.token_embedding
    prompts = rng.permutation(presets.prompts(PRESET, "train"))[: arguments.prompts].tolist()
    held_out = presets.prompts(PRESET, "test")[: arguments.held_out]
    sizes = arguments.samples, arguments.batch_size, rng
    problem, judge = Problem(policy, prompts, *sizes), Problem(policy, held_out, *sizes, ranked_among=32)
    about = {**provenance(), "versions": versions(), "completions": len(prompts) * arguments.samples}
    about["linear_reward_model"] = linear_reward_model(problem, judge, policy.backbone.vocabulary_size)
    print("a worth for every token:", about["linear_reward_model"], flush=True)
    rows, started = [], time.perf_counter()
    for shrinkage in arguments.shrinkage:
        found = directions(problem, arguments.damping, shrinkage)
        for i, (direction, scores) in zip(range(1, arguments.iterations + 1), found, strict=False):
            judged = figures(problem, scores, judge, judge.scores(direction))
            rows.append({"shrinkage": shrinkage, "iterations": i, **judged})
            print(rows[-1], f"({time.perf_counter() - started:.0f} s)", flush=True)
            result = {**about, "rows": rows}
            pathlib.Path(__file__).with_name(f"directions-{arguments.train}.json").write_text(
                json.dumps(result, indent=2) + "\n"
            )
    print_table(
        ["shrinkage", "iterations", "KL efficiency, fitted", "held out"],
        [
            [r["shrinkage"], r["iterations"], f"{r['fitted']:.3f}", f"{r['held_out']:.3f} ± {r['standard_error']:.3f}"]
            for r in rows
        ],
    )


if __name__ == "__main__":
    main()
