"""`keras-bond demo`: J-BOND on the bundled model, data and reward, from nothing to a picture in minutes."""

import csv
import functools
import json
import pathlib
import time

import keras
import numpy as np

from keras_bond import presets
from keras_bond.evaluation import best_of_n_points
from keras_bond.experiments.align import PRESET, SIZES, align, before_after, bundled_trainer, of_the_embedding
from keras_bond.experiments.plots import training_figure
from keras_bond.experiments.provenance import versions
from keras_bond.optimizers import RowwiseSGD
from keras_bond.trainers import JBOND

BATCH_SIZE = 64
SETTINGS = {"n": 4, "beta": 0.05, "eta": 0.02, "gamma": 0.0, "variance_reduction": False}
OPTIMIZER = {"learning_rate": 7.5e-3, "optimizer": functools.partial(RowwiseSGD, damping=1.0)}
SHOWN = 6


def run(output, steps=135, seed=0, num_prompts=512, say=print, started=None):
    """Run the demo and write its files to `output`.

    Args:
        output: folder; `summary.json`, `metrics.csv`, `samples.csv`, `frontier.png` and `policy/` are written there.
        steps: updates.
        seed: of sampling, of the prompts' order and of the evaluation.
        num_prompts: held-out prompts of the evaluation.
        say: what prints the story.
        started: `time.time()` from which `seconds` counts; now by default.

    Returns:
        The summary, a dict.
    """
    started = started or time.time()
    output = pathlib.Path(output)
    output.mkdir(parents=True, exist_ok=True)
    trainer = bundled_trainer(of_the_embedding(JBOND), seed, **OPTIMIZER, **SETTINGS)
    policy = trainer.policy
    held_out = presets.prompts(PRESET, "test")[:num_prompts]
    say(
        f"J-BOND on {PRESET} ({policy.count_params():,} parameters, {keras.config.backend()}): completions of the openings\n"
        "of State-of-the-Union sentences are to read more positive (VADER sentiment).\n"
        f"{steps} updates of {BATCH_SIZE} prompts; the token embedding alone is trained, row by row.\n"
    )
    train, log = presets.prompts(PRESET, "train"), output / "metrics.csv"
    run = align(trainer, train, held_out, steps=steps, log=log, batch_size=BATCH_SIZE, seed=seed)
    _, final = run.path[-1]
    points = best_of_n_points(run.evaluator.reference_samples.rewards)

    examples = _write_samples(output / "samples.csv", final)
    policy.save_to_preset(output / "policy")
    summary = _summary(trainer, run.rows, final, points, steps, seed, started)
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    title = (
        f"J-BOND on {PRESET}, {keras.config.backend()}, seed {seed}: held-out win rate {summary['win_rate']:.3f} "
        f"at {summary['kl']:.2f} nats, {summary['frontier_efficiency']:.2f} of the best possible gain"
    )
    training_figure(run.rows, run.path, points, title).savefig(output / "frontier.png", dpi=130)
    _report(say, output, summary, examples, points)
    return summary


def _write_samples(filename, evaluation):
    """One row per held-out prompt; returns them as dicts."""
    rows = before_after(evaluation)
    with open(filename, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return rows


def _summary(trainer, rows, final, points, steps, seed, started):
    estimates = final.estimates
    step_seconds = np.diff([0.0, *(row["seconds"] for row in rows)])
    median = float(np.median(step_seconds))
    tokens_per_step = BATCH_SIZE * (1 + trainer.n) * float(np.mean([row["completion_length"] for row in rows]))
    return {
        "algorithm": "J-BOND",
        "backend": keras.config.backend(),
        "seed": seed,
        "steps": steps,
        "batch_size": BATCH_SIZE,
        "sampled_completions": steps * BATCH_SIZE * (1 + trainer.n),
        "seconds": round(time.time() - started, 1),
        "compile_seconds": round(float(step_seconds[0]) - median, 1),  # of the update; sampling is compiled before `fit`
        "seconds_per_step": round(median, 3),
        "tokens_per_second": round(tokens_per_step / median, 1),  # sampled tokens of policy and anchor
        "parameters": trainer.policy.count_params(),
        "trained": [variable.path for variable in trainer.policy.trainable_variables],
        "reward_before": round(estimates["reference_reward"].value, 4),
        "reward_after": round(estimates["reward"].value, 4),
        "win_rate": round(estimates["win_rate"].value, 4),
        "win_rate_ci": [round(v, 4) for v in estimates["win_rate"][1:]],
        "kl": round(estimates["kl"].value, 4),
        "kl_ci": [round(v, 4) for v in estimates["kl"][1:]],
        "frontier_efficiency": round(estimates["frontier_efficiency"].value, 4),
        "frontier_efficiency_ci": [round(v, 4) for v in estimates["frontier_efficiency"][1:]],
        "kl_efficiency": round(estimates["kl_efficiency"].value, 4),
        "completion_length": round(estimates["completion_length"].value, 2),
        "truncated": round(estimates["truncated"].value, 4),
        "best_of_n": points,
        "evaluation_prompts": len(final.samples.rewards),
        "settings": SETTINGS | SIZES | {"optimizer": keras.optimizers.serialize(trainer.optimizer)},
        "versions": versions(),
    }


def _report(say, output, summary, examples, points):
    say("\nBefore and after, first held-out prompts (reward in brackets):")
    for row in examples[:SHOWN]:
        say(f"  {row['prompt']} ...")
        say(f"    before [{row['reward_before']:+.2f}] {row['before'].strip()}")
        say(f"    after  [{row['reward_after']:+.2f}] {row['after'].strip()}")
    low, high = summary["win_rate_ci"]
    best = "; ".join(f"Best-of-{p['n']} {p['win_rate']:.3f}" for p in points)
    say(
        f"\nReward {summary['reward_before']:.3f} -> {summary['reward_after']:.3f} "
        f"on {summary['evaluation_prompts']} held-out prompts.\n"
        f"Win rate against the reference {summary['win_rate']:.3f} (95 %: {low:.3f} to {high:.3f}; {best}),\n"
        f"at a KL of {summary['kl']:.2f} nats: {100 * summary['frontier_efficiency']:.0f} % of the gain "
        f"that any policy could have at this KL;\n{100 * summary['kl_efficiency']:.0f} % of the KL was needed.\n"
        f"{summary['seconds']:.0f} s in all, {summary['seconds_per_step']:.2f} s an update, "
        f"{summary['tokens_per_second']:.0f} sampled tokens a second.\n"
        f"Look at {output / 'frontier.png'}; the aligned model is a KerasHub preset in {output / 'policy'}."
    )
