"""What it buys to keep LoRA beside the weights: policy and anchor sampled in one pass; and what it does to the update.

    python benchmarks/adapters.py

A step of J-BOND on the 46M model of `step.py` with LoRA of rank 8, JAX: prompts and completions of 32 tokens, one completion
of the policy and two of the anchor a prompt. `one pass` is what the package does; `a pass each` runs the frozen weights for
policy and anchor apart; `sums` is Keras' own LoRA, which adds each adapter to its kernel, hence a pass each. The programs
take turns; times are medians, ratios are taken within rounds. Prints a table and writes `adapters.json` beside this file.
"""

import argparse
import json
import os
import pathlib
import statistics

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np
from common import print_table, provenance, use_keras_products
from roofline import arguments_of_step, seconds
from step import MODELS, prompts_of, random_gemma

from keras_bond import JBOND, presets
from keras_bond.experiments.align import PRESET
from keras_bond.experiments.provenance import versions

LENGTH = 32
WAYS = ("one pass", "a pass each", "sums")


def make_trainer(way, dtype):
    """A J-BOND trainer; the same weights whatever the `way`."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(dtype)
    policy = random_gemma(MODELS["46M"])
    policy.backbone.enable_lora(8)
    lengths = {"max_prompt_length": LENGTH, "max_completion_length": LENGTH}
    trainer = JBOND(
        policy, lambda prompts, texts: list(map(len, texts)), **lengths, stop_token_ids=(), variance_reduction=False
    )
    trainer.compile(keras.optimizers.Adam(1e-4))
    if way == "a pass each":
        sample = trainer.rollout.sample_each
        trainer.rollout.sample_each = lambda sources, *prompt: [sample([source], *prompt) for source in sources]
    if way == "sums":
        use_keras_products(policy)
    return trainer


def programs(trainer, prompts):
    """name: (compiled function, its arguments): sampling and the update of a step on these prompts."""
    draw, prompt, step = arguments_of_step(trainer, prompts)
    sources = [(draw.policy, np.asarray(draw.policy_uniforms)), (draw.anchor, np.asarray(draw.anchor_uniforms))]
    calls = {"sampling": (trainer.rollout.sample_each, (sources, *prompt)), "update": (trainer.train_step, step)}
    return {name: (jax.jit(call).lower(*arguments).compile(), arguments) for name, (call, arguments) in calls.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()

    runs = []
    for dtype in arguments.dtypes:
        trainers = {way: make_trainer(way, dtype) for way in WAYS}
        texts, _ = prompts_of(trainers["sums"].rollout.tokenizer, presets.prompts(PRESET, "train"), LENGTH)
        for count in arguments.prompts:
            table = {(way, name): p for way in WAYS for name, p in programs(trainers[way], texts[:count]).items()}
            times = seconds(table, arguments.rounds)
            for name in ("sampling", "update"):
                run = {"dtype": dtype, "prompts": count, "program": name, "seconds": {w: times[w, name] for w in WAYS}}
                runs.append(run)

    def ratio(run, way):
        return statistics.median(np.divide(run["seconds"][way], run["seconds"]["one pass"]))

    rows = [
        [run["program"], run["dtype"], run["prompts"], f"{statistics.median(run['seconds']['one pass']):.3f}"]
        + [f"{ratio(run, way):.2f}" for way in WAYS[1:]]
        for run in runs
    ]
    print_table(["program", "dtype", "prompts", "one pass, s", "a pass each, ratio", "sums, ratio"], rows)
    result = {**provenance(), "versions": versions(), "rounds": arguments.rounds, "runs": runs}
    pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
