"""What an update takes in memory, beside the plain way to do it.

    python benchmarks/memory.py

Three tables. XLA's own account of a compiled J-BOND update (float32) at Gemma's vocabulary and width, of abstract arrays: all
logits at once, by chunks of positions, and by microbatches. The peak of a process that trains the bundled model with long
completions. What anchor and reference take for a Gemma 2B, with and without LoRA, beside one more copy of the model. Prints
them and writes `memory.json` beside this file.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys

from common import print_table, provenance

GIB = 2**30
ALL_AT_ONCE = 10**15
GEMMA_2B = {
    "vocabulary_size": 256_000,
    "num_layers": 18,
    "num_query_heads": 8,
    "num_key_value_heads": 1,
    "hidden_dim": 2048,
    "intermediate_dim": 32_768,
    "head_dim": 256,
}
WAYS = {
    "all logits at once": {"logits_at_once": ALL_AT_ONCE},
    "chunks of positions": {},
    "chunks, microbatches of one prompt": {"microbatch_size": 1},
}


def set_logits_at_once(number):
    """`keras_bond.rollout.rollout.LOGITS_AT_ONCE`, where a number is given."""
    from keras_bond.rollout import rollout

    if number:
        rollout.LOGITS_AT_ONCE = number


def abstract_trainer(sizes, rank, dtype, **settings):
    """(trainer, state): a J-BOND trainer of a Gemma of these sizes without a weight in memory, and its state as shapes."""
    import jax
    import keras
    import keras_hub

    from keras_bond import JBOND, presets
    from keras_bond.experiments.align import PRESET

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


def update_bytes(sizes, batch_size, prompt_length, completion_length, rank, logits_at_once=None, **settings):
    """XLA's account of one update: temporaries, and arguments (weights, shadows, optimizer)."""
    import jax

    from keras_bond.rollout import Trajectory

    set_logits_at_once(logits_at_once)
    lengths = {"max_prompt_length": prompt_length, "max_completion_length": completion_length}
    trainer, state = abstract_trainer(sizes, rank, "float32", **lengths, **settings)
    rows, k = batch_size, trainer.num_anchor_samples
    contenders = k if trainer.variance_reduction else 1

    def shape(*dimensions, dtype="float32"):
        return jax.ShapeDtypeStruct(dimensions, dtype)

    trajectory = Trajectory(
        prompt_ids=shape(rows, prompt_length, dtype="int32"),
        prompt_mask=shape(rows, prompt_length, dtype="int32"),
        completion_ids=shape(rows, completion_length, dtype="int32"),
        completion_mask=shape(rows, completion_length, dtype="bool"),
        contender_ids=shape(rows * contenders, completion_length, dtype="int32"),
        contender_mask=shape(rows * contenders, completion_length, dtype="bool"),
        contender_weights=shape(rows, contenders),
        reward=shape(rows),
        anchor_rewards=shape(rows, k),
        anchor_log_prob=shape(rows),
        reference_log_prob=shape(rows),
    )
    compiled = jax.jit(trainer.train_step, donate_argnums=0).lower(state, (trajectory,)).compile()
    memory = compiled.memory_analysis()
    return {"temporaries": memory.temp_size_in_bytes, "arguments": memory.argument_size_in_bytes}


def peak_bytes(batch_size, completion_length, steps, logits_at_once=None, **settings):
    """The largest resident size of this process before and after `fit` on the bundled model, none of whose tokens stops."""
    from keras_bond import JBOND, presets
    from keras_bond.experiments.align import PRESET, bundled_trainer

    set_logits_at_once(logits_at_once)
    settings = {"max_completion_length": completion_length, "stop_token_ids": (), "n": 4, **settings}
    trainer = bundled_trainer(JBOND, **settings)

    def peak():
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = peak()
    trainer.fit(presets.prompts(PRESET), batch_size=batch_size, steps_per_epoch=steps, verbose=0)
    return {"before": before, "peak": peak()}


def shadow_bytes(sizes, rank):
    """Bytes of a policy in bfloat16, and of the anchor and the reference that go with it."""
    trainer, _ = abstract_trainer(sizes, rank, "bfloat16")

    def size(variables):
        return sum(v.dtype.itemsize * v.size for v in (variable.value for variable in variables))

    return {
        "policy": size(trainer.policy.variables),
        "trainable": size(trainer.policy.trainable_variables),
        "anchor_and_reference": size([*trainer.anchor.shadows, *trainer.reference.shadows]),
    }


CELLS = {"update": update_bytes, "peak": peak_bytes, "shadows": shadow_bytes}


def cell(kind, backend, **settings):
    """The result of one of `CELLS`, in a process of its own."""
    print(f"{kind}, {backend}, {settings} ...", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--cell", kind, json.dumps(settings)]
    environment = os.environ | {"KERAS_BACKEND": backend}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def gib(number):
    return f"{number / GIB:.3f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary-size", type=int, default=256_000)
    parser.add_argument("--hidden-dim", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=2, help="of the abstract update")
    parser.add_argument("--batch-size", type=int, default=8, help="prompts of the abstract update")
    parser.add_argument("--completion-length", type=int, default=512, help="of the abstract update")
    parser.add_argument("--peak-batch-size", type=int, default=32, help="prompts of the run")
    parser.add_argument("--peak-completion-length", type=int, default=128, help="of the run")
    parser.add_argument("--steps", type=int, default=2, help="of the run")
    parser.add_argument("--backends", nargs="+", default=["jax", "tensorflow", "torch"], help="of the run")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path(__file__).with_suffix(".json"))
    parser.add_argument("--cell", nargs=2, metavar=("KIND", "SETTINGS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        kind, settings = arguments.cell
        print(json.dumps(CELLS[kind](**json.loads(settings))))
        return

    sizes = GEMMA_2B | {
        "vocabulary_size": arguments.vocabulary_size,
        "hidden_dim": arguments.hidden_dim,
        "num_layers": arguments.layers,
    }
    shape = {"batch_size": arguments.batch_size, "prompt_length": 64, "completion_length": arguments.completion_length}
    trained = {"LoRA, rank 8": 8, "all weights": 0}
    updates = [
        {"trained": name, "way": way, **cell("update", "jax", sizes=sizes, rank=rank, **shape, **settings)}
        for name, rank in trained.items()
        for way, settings in WAYS.items()
    ]
    rows = [[u["trained"], u["way"], gib(u["temporaries"]), gib(u["arguments"])] for u in updates]
    print_table(["trained", "update", "temporaries, GiB", "weights and state, GiB"], rows)
    print()

    shape = {"batch_size": arguments.peak_batch_size, "completion_length": arguments.peak_completion_length}
    peaks = [
        {"backend": backend, "way": way, **cell("peak", backend, steps=arguments.steps, **shape, **settings)}
        for backend in arguments.backends
        for way, settings in WAYS.items()
    ]
    rows = [[p["backend"], p["way"], gib(p["before"]), gib(p["peak"]), gib(p["peak"] - p["before"])] for p in peaks]
    print_table(["backend", "update", "before `fit`, GiB", "peak, GiB", "more, GiB"], rows)
    print()

    shadows = [{"trained": name, **cell("shadows", "jax", sizes=GEMMA_2B, rank=rank)} for name, rank in trained.items()]
    rows = [[s["trained"], *(gib(s[part]) for part in ("anchor_and_reference", "policy"))] for s in shadows]
    print_table(["trained", "anchor and reference, float32, GiB", "one more model, bfloat16, GiB"], rows)

    from keras_bond.experiments.provenance import versions

    result = {**provenance(), "versions": versions(), "sizes": sizes, "batch_size": arguments.batch_size}
    result |= {"completion_length": arguments.completion_length, "updates": updates}
    result |= {"peak_batch_size": arguments.peak_batch_size, "peak_completion_length": arguments.peak_completion_length}
    arguments.output.write_text(json.dumps(result | {"peaks": peaks, "shadows": shadows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
