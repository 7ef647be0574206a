"""What an update takes in memory, beside the plain way to do it.

    python benchmarks/memory.py

Three tables. XLA's own account of a compiled J-BOND update (float32) at Gemma's vocabulary and width, of abstract arrays:
all logits at once, by chunks of positions, and by microbatches. The peak of a process that trains the bundled model on long
completions, backend by backend. What anchor and reference take for a Gemma 2B, with and without LoRA, beside one more copy
of the model. Prints them and writes `memory.json` beside this file.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import keras
import keras_hub
from common import print_table, provenance

from keras_bond import JBOND, presets
from keras_bond.experiments.align import PRESET, bundled_trainer
from keras_bond.experiments.provenance import versions
from keras_bond.rollout import Trajectory, rollout

LOGITS_AT_ONCE = rollout.LOGITS_AT_ONCE
GEMMA_2B = {
    "vocabulary_size": 256_000,
    "num_layers": 18,
    "num_query_heads": 8,
    "num_key_value_heads": 1,
    "hidden_dim": 2048,
    "intermediate_dim": 32_768,
    "head_dim": 256,
}
TRAINED = {"LoRA, rank 8": 8, "all weights": 0}
WAYS = {
    "all logits at once": (10**15, None),
    "chunks of positions": (LOGITS_AT_ONCE, None),
    "chunks, a prompt at a time": (LOGITS_AT_ONCE, 1),
}
"""name: (logits at once, prompts in a microbatch)."""


def abstract_trainer(sizes, rank, dtype, **settings):
    """(trainer, state): a J-BOND trainer of a Gemma of these sizes without a weight in memory, and its state as shapes."""
    preprocessor = keras_hub.models.CausalLMPreprocessor.from_preset(presets.path(PRESET))
    made = []

    def build():
        backbone = keras_hub.models.GemmaBackbone(**sizes, dtype=dtype)
        if rank:
            backbone.enable_lora(rank=rank)
        policy = keras_hub.models.GemmaCausalLM(backbone, preprocessor)
        trainer = JBOND(policy, lambda prompts, completions: [0.0] * len(prompts), **settings)
        trainer.compile(keras.optimizers.Adam(3e-6))
        trainer.optimizer.build(trainer.trainable_variables)
        made.append(trainer)
        groups = (trainer.trainable_variables, trainer.non_trainable_variables, trainer.optimizer.variables)
        return tuple([v.value for v in group] for group in (*groups, trainer.metrics_variables))

    state = jax.eval_shape(build)
    return made[0], state


def update_bytes(way, sizes, batch_size, prompt_length, completion_length, rank):
    """XLA's account of one update: temporaries, and arguments (weights, shadows, optimizer)."""
    rollout.LOGITS_AT_ONCE, microbatch_size = WAYS[way]
    lengths = {"max_prompt_length": prompt_length, "max_completion_length": completion_length}
    trainer, state = abstract_trainer(sizes, rank, "float32", microbatch_size=microbatch_size, **lengths)
    rows, k = batch_size, trainer.num_anchor_samples

    def shape(*dimensions, dtype="float32"):
        return jax.ShapeDtypeStruct(dimensions, dtype)

    trajectory = Trajectory(
        prompt_ids=shape(rows, prompt_length, dtype="int32"),
        prompt_mask=shape(rows, prompt_length, dtype="int32"),
        completion_ids=shape(rows, completion_length, dtype="int32"),
        completion_mask=shape(rows, completion_length, dtype="bool"),
        contender_ids=shape(rows * k, completion_length, dtype="int32"),
        contender_mask=shape(rows * k, completion_length, dtype="bool"),
        contender_weights=shape(rows, k),
        reward=shape(rows),
        anchor_rewards=shape(rows, k),
        relative_reward=shape(rows),
        relative_anchor_rewards=shape(rows, k),
        anchor_log_prob=shape(rows),
        reference_log_prob=shape(rows),
    )
    compiled = jax.jit(trainer.train_step, donate_argnums=0).lower(state, (trajectory,)).compile()
    memory = compiled.memory_analysis()
    return {"temporaries": memory.temp_size_in_bytes, "arguments": memory.argument_size_in_bytes}


def peak_bytes(way, batch_size, completion_length, steps):
    """The largest resident size of this process before and after `fit` on the bundled model, none of whose tokens stops."""
    rollout.LOGITS_AT_ONCE, microbatch_size = WAYS[way]
    lengths = {"max_completion_length": completion_length, "stop_token_ids": ()}
    trainer = bundled_trainer(JBOND, n=4, microbatch_size=microbatch_size, **lengths)

    def peak():  # of this program alone: `getrusage` goes on from the process that started it
        status = pathlib.Path("/proc/self/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])

    before = peak()
    trainer.fit(presets.prompts(PRESET), batch_size=batch_size, steps_per_epoch=steps, verbose=0)
    return {"before": before, "peak": peak()}


def peak_elsewhere(backend, way, **settings):
    """`peak_bytes` in a process of its own."""
    print(f"{backend}, {way} ...", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--peak", json.dumps({"way": way, **settings})]
    environment = os.environ | {"KERAS_BACKEND": backend}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def shadow_bytes(rank):
    """Of a Gemma 2B in bfloat16: bytes of the policy, and of the anchor and the reference that go with it."""
    trainer, _ = abstract_trainer(GEMMA_2B, rank, "bfloat16")

    def size(variables):
        return sum(value.dtype.itemsize * value.size for value in (variable.value for variable in variables))

    return {
        "policy": size(trainer.policy.variables),
        "trainable": size(trainer.policy.trainable_variables),
        "anchor_and_reference": size([*trainer.anchor.shadows, *trainer.reference.shadows]),
    }


def show(names, header, rows):
    """A table of dicts: the columns `names`, in which numbers are bytes and are shown in GiB."""
    print_table(header, [[v if isinstance(v := row[n], str) else f"{v / 2**30:.3f}" for n in names] for row in rows])
    print(flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary-size", type=int, default=256_000)
    parser.add_argument("--hidden-dim", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=2, help="of the abstract update")
    parser.add_argument("--batch-size", type=int, default=8, help="prompts of the abstract update")
    parser.add_argument("--completion-length", type=int, default=512, help="of the abstract update")
    parser.add_argument("--peak-batch-size", type=int, default=32, help="prompts of the runs")
    parser.add_argument("--peak-completion-length", type=int, default=128, help="of the runs")
    parser.add_argument("--steps", type=int, default=1, help="of the runs")
    parser.add_argument("--backends", nargs="*", default=["jax", "tensorflow", "torch"], help="of the runs; may be none")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path(__file__).with_suffix(".json"))
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(json.dumps(peak_bytes(**json.loads(arguments.peak))))
        return

    sizes = {"vocabulary_size": arguments.vocabulary_size, "hidden_dim": arguments.hidden_dim}
    sizes = GEMMA_2B | sizes | {"num_layers": arguments.layers}
    shape = {"batch_size": arguments.batch_size, "prompt_length": 64, "completion_length": arguments.completion_length}
    updates = [
        {"trained": name, "way": way, **update_bytes(way, sizes, rank=rank, **shape)}
        for name, rank in TRAINED.items()
        for way in WAYS
    ]
    names = ("trained", "way", "temporaries", "arguments")
    show(names, ["trained", "update", "temporaries, GiB", "weights and state, GiB"], updates)

    run = {"batch_size": arguments.peak_batch_size, "completion_length": arguments.peak_completion_length}
    peaks = [
        {"backend": backend, "way": way, **peak_elsewhere(backend, way, steps=arguments.steps, **run)}
        for backend in arguments.backends
        for way in WAYS
    ]
    show(("backend", "way", "before", "peak"), ["backend", "update", "before `fit`, GiB", "peak, GiB"], peaks)

    shadows = [{"trained": name, **shadow_bytes(rank)} for name, rank in TRAINED.items()]
    header = ["trained", "anchor (float32) and reference, GiB", "one more model, bfloat16, GiB"]
    show(("trained", "anchor_and_reference", "policy"), header, shadows)

    result = {**provenance(), "versions": versions(), "sizes": sizes, **shape, "updates": updates}
    result |= {"run": {**run, "steps": arguments.steps}, "peaks": peaks, "shadows": shadows}
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
