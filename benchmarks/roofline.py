"""How much of this machine do sampling and the update use? J-BOND, all weights by SGD, on the models of `step.py`.

    python benchmarks/roofline.py
    python benchmarks/roofline.py --model 46M

On JAX, in float32, with the prompts and completions of `step.py`. The peaks are measured: a product of two square
matrices, and one long vector added to another in place. Operations and bytes are XLA's count for the compiled programs
(what it says of the body of the sampling loop, times the tokens); its bytes are those that kernels read and write, in a
cache or not, so that their share can pass 1. The programs take turns, and the times are medians. Prints a table and
writes `roofline-MODEL.json` beside this file.
"""

import argparse
import json
import os
import pathlib
import statistics
import time

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import keras
import numpy as np
import step
from common import print_table, provenance

from keras_bond import JBOND
from keras_bond.experiments.provenance import versions


def peaks(side, length):
    """name: (compiled function, its arguments, operations, bytes)."""
    repeats = 10  # in place: a fresh result would be charged for the pages it is given

    def repeated(function, *arguments):
        return (
            jax.jit(lambda x, y: jax.lax.fori_loop(0, repeats, lambda i, z: function(z, y), x)).lower(*arguments).compile()
        )

    matrix, vector = jnp.full((side, side), 1 / side, "float32"), jnp.ones((length,), "float32")
    product, total = repeated(jnp.matmul, matrix, matrix), repeated(jnp.add, vector, vector)
    return {
        "matrix product": (product, (matrix, matrix), repeats * 2 * side**3, repeats * 3 * matrix.nbytes),
        "sum of vectors": (total, (vector, vector), repeats * length, repeats * 3 * vector.nbytes),
    }


def arguments_of_step(trainer, prompts):
    """(draw, prompts as tokens, arguments of `train_step`) of the first step of `fit` on all of these prompts."""
    trainer._build_optimizer()
    batch, draw = trainer._open(prompts, len(prompts)).take(np.arange(len(prompts))), trainer.draw(len(prompts))
    groups = (trainer.trainable_variables, trainer.non_trainable_variables, trainer.optimizer.variables)
    state = tuple([v.value for v in group] for group in (*groups, trainer.metrics_variables))
    return draw, (batch.prompt_ids, batch.prompt_mask), (state, (trainer.collect(batch, draw),))


def programs(model):
    """name: (compiled function, its arguments, operations, bytes): one completion a prompt, and the update of a step."""
    policy, texts, _, lengths, settings, rows = step.case(model)
    sizes = dict(zip(("max_prompt_length", "max_completion_length"), lengths, strict=True))
    trainer = JBOND(policy, lambda prompts, completions: [0.0] * len(prompts), **sizes, **settings, stop_token_ids=())
    trainer.compile(keras.optimizers.SGD(step.SGD["learning_rate"], momentum=step.SGD["momentum"]))
    draw, prompts, arguments = arguments_of_step(trainer, texts[:rows])
    rollout, uniforms = trainer.rollout, np.asarray(draw.policy_uniforms)
    sample = jax.jit(rollout._sample_function)
    sampling = sample.lower([(draw.policy, uniforms)], *prompts).compile()
    # XLA counts a loop's body once: it is nearly all of a program without a prompt to read, with as long a cache
    longer = np.zeros((rows, 1, prompts[0].shape[1] + rollout.max_completion_length - 1), "float32")
    body = sample.lower([(draw.policy, longer)], *(field[:, :1] for field in prompts)).compile()
    more = rollout.max_completion_length - 1
    update = jax.jit(trainer.train_step).lower(*arguments).compile()
    return {
        "sampling": (
            sampling,
            ([(draw.policy, uniforms)], *prompts),
            *np.add(cost(sampling), np.multiply(more, cost(body))),
        ),
        "update": (update, arguments, *cost(update)),
    }


def cost(compiled):
    """(operations, bytes) by XLA's count."""
    analysis = compiled.cost_analysis()
    return analysis["flops"], analysis["bytes accessed"]


def seconds(table, rounds):
    """name: the seconds of each of its turns, after a first one that does not count."""
    times = {name: [] for name in table}
    for i in range(rounds + 1):
        for name, (function, arguments, *_) in table.items():
            started = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            if i:
                times[name].append(time.perf_counter() - started)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--model", choices=step.MODELS, default="bundled")
    parser.add_argument("--side", type=int, default=2048, help="of the matrices")
    parser.add_argument("--length", type=int, default=2**26, help="of the vectors")
    arguments = parser.parse_args()
    table = peaks(arguments.side, arguments.length) | programs(arguments.model)
    times = seconds(table, arguments.rounds)
    rows = {}
    for name, (_, _, operations, size) in table.items():
        median = statistics.median(times[name])
        rows[name] = {"seconds": median, "flops_per_second": operations / median, "bytes_per_second": size / median}
        rows[name] |= {"flops": float(operations), "bytes": float(size), "rounds": times[name]}
    peak = rows["matrix product"]["flops_per_second"]
    bandwidth = rows["sum of vectors"]["bytes_per_second"]
    for row in rows.values():
        row["share_of_peak"] = row["flops_per_second"] / peak
        row["share_of_bandwidth"] = row["bytes_per_second"] / bandwidth
    print_table(
        ["program", "seconds", "GFLOP", "GFLOP/s", "share of peak", "GB", "GB/s", "share of bandwidth"],
        [
            [
                name,
                f"{row['seconds']:.4f}",
                f"{row['flops'] / 1e9:.2f}",
                f"{row['flops_per_second'] / 1e9:.1f}",
                f"{row['share_of_peak']:.2f}",
                f"{row['bytes'] / 1e9:.2f}",
                f"{row['bytes_per_second'] / 1e9:.1f}",
                f"{row['share_of_bandwidth']:.2f}",
            ]
            for name, row in rows.items()
        ],
    )
    result = {**provenance(), "versions": versions(), "model": arguments.model, "programs": rows}
    pathlib.Path(__file__).with_name(f"roofline-{arguments.model}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
