"""What a step of J-BOND would cost on a TPU topology: the real programs, compiled by XLA for chips that are not here."""

import math
import re
import time
from typing import NamedTuple

import jax
import keras

from keras_bond.scale.abstract import abstract
from keras_bond.scale.configurations import make_policy
from keras_bond.scale.layouts import layout_map
from keras_bond.scale.loops import loop_factor
from keras_bond.scale.programs import abstract_state, trace_step, trace_token
from keras_bond.scale.topology import CHIPS, device_mesh, parse_topology
from keras_bond.schedules import LinearWarmup
from keras_bond.trainers import JBOND

PROGRAMS = ("sample", "score", "update")


class Cost(NamedTuple):
    """What one run of a compiled program takes on each chip; bytes, operations, seconds."""

    arguments: float
    outputs: float
    """Less what re-uses an argument's memory."""
    temporaries: float
    """Program text included."""
    flops: float
    moved: float
    """Bytes read and written, as the compiler counts them: between HBM and the cores, and between cores and registers."""
    compile_seconds: float

    @property
    def peak(self):
        return self.arguments + self.outputs + self.temporaries


def measure(traced):
    """`Cost` of a `jax.stages.Traced`; of a program that the chip has no room for, only what the compiler says it needs.

    Operations and bytes are the compiler's, which counts a loop's body once, times `loop_factor`; a loop that ends on a
    condition counts once.
    """
    started = time.time()
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Cost(math.nan, 0.0, _needed(str(error)), math.nan, math.nan, time.time() - started)
    memory, cost, factor = compiled.memory_analysis(), compiled.cost_analysis(), loop_factor(traced.jaxpr)
    return Cost(
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        flops=cost["flops"] * factor,
        moved=cost["bytes accessed"] * factor,
        compile_seconds=time.time() - started,
    )


def _needed(message):
    """Bytes, out of the compiler's message that there is no room."""
    found = re.search(r"(?:required for HLO temporaries \(|Used )([\d.]+)([KMGT])", message)
    return float(found[1]) * 2 ** {"K": 10, "M": 20, "G": 30, "T": 40}[found[2]] if found else math.inf


def held_bytes(variables):
    """Bytes that one chip holds of abstract arrays."""
    return sum(math.prod(v.sharding.shard_shape(v.shape) if v.sharding else v.shape) * v.dtype.itemsize for v in variables)


def step_report(
    preset,
    topology,
    lora_rank=None,
    batch_size=128,
    prompt_length=256,
    completion_length=256,
    dtype="bfloat16",
    model_chips=None,
    microbatch_size=None,
    sampling_batch_size=None,
    algorithm=JBOND,
    programs=PROGRAMS,
    say=lambda line: None,
    **overrides,
):
    """Compile a step for a TPU topology: sampling, scoring and update, of the real configuration and without memory.

    Args:
        preset, lora_rank, dtype, **overrides: see `make_policy`.
        topology, model_chips: see `device_mesh`.
        batch_size: prompts a step, over all chips.
        prompt_length, completion_length: tokens.
        microbatch_size: prompts whose activations are in memory at a time, over all chips; by default all.
        sampling_batch_size: prompts that are sampled at a time, over all chips; by default all.
        algorithm: a trainer, with its defaults; its optimizer is the paper's, Adam with a linear warm-up.
        programs: which ones to compile; the peak is over these, and without any it is what a step holds throughout.
        say: called with a line before each program is compiled.

    Returns:
        dict that JSON can hold: the arguments, `programs` (a `Cost` each, and how often it runs in a step), and the step's
        bytes a chip.

    Raises:
        ValueError: if an argument is out of range; the message names it.
    """
    mesh = device_mesh(topology, model_chips)
    parts = {"microbatch_size": microbatch_size, "sampling_batch_size": sampling_batch_size}
    for name, size in {"batch_size": batch_size, **parts}.items():
        if size and (size % mesh.shape[0] or batch_size % size):
            raise ValueError(
                f"`{name}` must be a multiple of the {mesh.shape[0]} chips of the batch axis and divide the batch of "
                f"{batch_size}. Received: {size}"
            )
    policy = abstract(lambda: make_policy(preset, dtype, lora_rank, **overrides))
    placement = keras.distribution.ModelParallel(layout_map=layout_map(policy, mesh), batch_dim_name="batch")

    def build():
        trainer = algorithm(
            make_policy(preset, dtype, lora_rank, **overrides),
            lambda prompts, completions: [0.0] * len(prompts),
            max_prompt_length=prompt_length,
            max_completion_length=completion_length,
            **parts,
        )
        trainer.compile(keras.optimizers.Adam(LinearWarmup(3e-6, 100)))
        trainer.optimizer.build(trainer.trainable_variables)
        return trainer

    with placement.scope():
        trainer = abstract(build)
        costs: dict[str, Cost] = {}
        step = trace_step(trainer, batch_size, prompt_length)
        for name in programs:
            say(f"compiling {name}")
            costs[name] = measure(step[name]())
        if "sample" in costs:
            say("compiling one token")
            token = measure(trace_token(trainer, batch_size, prompt_length))
            costs["sample"] = _whole_loop(costs["sample"], token, completion_length)
        state = abstract_state(trainer)
    generation, _ = parse_topology(topology)
    return {
        "preset": preset,
        "parameters": sum(math.prod(v.shape) for v in policy.variables),
        "trainable": sum(math.prod(v.shape) for v in policy.trainable_variables),
        "topology": topology,
        "chips": math.prod(mesh.shape),
        "batch_chips": mesh.shape[0],
        "model_chips": mesh.shape[1],
        "lora_rank": lora_rank,
        "dtype": dtype,
        "batch_size": batch_size,
        **parts,
        "prompt_length": prompt_length,
        "completion_length": completion_length,
        **_memory(trainer, state, costs, CHIPS[generation].memory),
        "programs": {
            name: {
                "runs": _runs(trainer)[name],
                **cost._asdict(),
                "peak": cost.peak,
                "roofline_seconds": max(cost.flops / CHIPS[generation].flops, cost.moved / CHIPS[generation].bandwidth),
            }
            for name, cost in costs.items()
        },
    }


def _whole_loop(sample, token, tokens):
    """The compiler counts sampling's loop once: add the other tokens."""
    return sample._replace(flops=sample.flops + (tokens - 1) * token.flops, moved=sample.moved + (tokens - 1) * token.moved)


def _runs(trainer):
    """How often a step samples, scores the policy's samples, and updates."""
    return {"sample": 1, "score": 1 if trainer.reference is trainer.anchor else 2, "update": 1}


def _memory(trainer, state, costs, limit):
    """Bytes a chip: what stays, and the peak over the programs of a step, each beside what stays."""
    trainable, non_trainable, optimizer, _ = state
    held = {id(v): value for v, value in zip(trainer.non_trainable_variables, non_trainable, strict=True)}
    shadows = {id(s): s for anchor in (trainer.anchor, trainer.reference) for s in anchor.shadows}
    weights = held_bytes(trainable) + held_bytes(held[id(v)] for v in trainer.policy.non_trainable_variables)
    total = held_bytes(jax.tree.leaves(state))
    # a rollout has anchor and reference in the policy's dtype as well, and takes one model's frozen weights for all
    copies = sum(v.dtype != "float32" for v in trainable) and 2 * held_bytes(trainable)
    peaks = {name: total + (0 if name == "update" else copies) + c.outputs + c.temporaries for name, c in costs.items()}
    peak = max([total, *peaks.values()])
    return {
        "policy_bytes": weights,
        "anchor_and_reference_bytes": held_bytes(held[key] for key in shadows),
        "optimizer_bytes": held_bytes(optimizer),
        "state_bytes": total,
        "rollout_copies_bytes": copies,
        "peak_bytes": peak,
        "peak_program": max(peaks, key=lambda name: peaks[name], default=None),
        "limit_bytes": limit,
        "fits": bool(peak <= limit),
    }
