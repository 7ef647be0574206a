"""How long does sampling take beside KerasHub's `generate()`, with prompts of one length and with ragged ones?

    python benchmarks/generation.py --model 1.5M
    python benchmarks/generation.py --model 46M --rounds 3

On JAX: 16 prompts, 3 completions each of 32 tokens, random weights, float32; nothing stops early. Even prompts have 32
tokens, ragged ones 8 to 32: `generate()` goes from where the shortest prompt ends to where the longest completion does.
Both take turns in this process; the table gives medians over rounds, after two that compile, and the ratio within a round
with its least and most. Writes `generation-MODEL.json` beside this file.
"""

import argparse
import json
import os
import pathlib
import statistics
import time

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras_hub
import numpy as np
from common import print_table, provenance
from step import MODELS, random_gemma

from keras_bond.experiments.provenance import versions
from keras_bond.rollout import Rollout, weights_of

PROMPTS, SAMPLES, SHORTEST, LONGEST, TOKENS = 16, 3, 8, 32, 32


def samplers(sizes, rng):
    """name: function of token ids, a list a prompt, that samples and waits for the result."""
    policy, other = random_gemma(sizes), random_gemma(sizes)
    rollout = Rollout(policy, LONGEST, TOKENS, stop_token_ids=())
    weights = weights_of(policy)
    other.preprocessor = None
    other.compile(sampler=keras_hub.samplers.RandomSampler())

    def ours(prompts):
        uniforms = rng.random((PROMPTS, SAMPLES, TOKENS), "float32")
        jax.block_until_ready(rollout.sample_each([(weights, uniforms)], *rollout.pad(prompts, LONGEST)))

    def keras_hub_alone(prompts):
        lengths = np.repeat([len(prompt) for prompt in prompts], SAMPLES)
        token_ids = np.zeros((len(lengths), LONGEST + TOKENS), "int32")
        for row, length in enumerate(lengths):
            token_ids[row, :length] = prompts[row // SAMPLES]
        mask = np.arange(token_ids.shape[1]) < lengths[:, None]
        np.asarray(other.generate({"token_ids": token_ids, "padding_mask": mask}, stop_token_ids=None)["token_ids"])

    return {"keras_bond": ours, "KerasHub's generate()": keras_hub_alone}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[name for name in MODELS if MODELS[name]], default="1.5M")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    contestants, rows, seconds = samplers(MODELS[arguments.model], rng), [], {}
    for kind, shortest in (("even", LONGEST), ("ragged", SHORTEST)):
        lengths = np.linspace(shortest, LONGEST, PROMPTS).astype(int)
        taken = seconds[kind] = {name: [] for name in contestants}
        for _ in range(2 + arguments.rounds):
            prompts = [rng.integers(3, MODELS[arguments.model]["vocabulary_size"], length).tolist() for length in lengths]
            for name, sample in contestants.items():
                started = time.perf_counter()
                sample(prompts)
                taken[name].append(time.perf_counter() - started)
        ours, theirs = (values[2:] for values in taken.values())
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        medians = [f"{statistics.median(values):.3f}" for values in (ours, theirs)]
        rows.append([kind, *medians, f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"])
    print_table(["prompts", *(f"{name}, s" for name in contestants), "time, ratio (least to most)"], rows)
    result = {**provenance(), "versions": versions(), "model": arguments.model, "seconds": seconds}
    path = pathlib.Path(__file__).with_name(f"generation-{arguments.model}.json")
    path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
