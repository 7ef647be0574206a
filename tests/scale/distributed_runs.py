"""Run as a program on 8 virtual devices: the same runs on one device, over the batch, and over batch and model.

Prints one line of JSON: what each run logged, what a device held, FLOPs a device, an error message.
"""

import json
import sys

import jax
import keras
import numpy as np
import tiny
from keras import distribution

from keras_bond import BOND, JBOND, scale
from keras_bond.quantiles import Learned

LOGGED = ("loss", "kl_anchor", "kl_reference", "reward", "grad_norm", "anchor_distance")
JEFFREYS = {"n": 2, "beta": 0.4, "eta": 0.1, "gamma": 0.3}
MODES = ("one", "batch", "batch, model")
RUNS = {  # algorithm, its arguments, LoRA's rank, steps, modes
    "JBOND": (JBOND, JEFFREYS, None, 10, MODES),
    "JBOND, LoRA": (JBOND, JEFFREYS | {"sampling_batch_size": 8}, 2, 10, MODES),
    "BOND, learned quantiles": (BOND, {"n": 2}, None, 2, ("one", "batch, model")),
}
DEVICES = jax.devices()


def policy(lora):
    return tiny.causal_lm(seed=11, scale=0.3, lora=lora, alphabet="abcd", num_query_heads=4, head_dim=8)


def placement(mode, lora):
    if mode == "batch":
        return distribution.DataParallel(devices=DEVICES)
    if mode == "batch, model":
        mesh = distribution.DeviceMesh((2, 4), ("batch", "model"), np.array(DEVICES))
        return distribution.ModelParallel(layout_map=scale.layout_map(policy(lora), mesh), batch_dim_name="batch")
    return None


def make(name):
    algorithm, arguments, lora, *_ = RUNS[name]
    if algorithm is BOND:
        arguments = arguments | {"quantiles": Learned()}
    lengths = {"max_prompt_length": 4, "max_completion_length": 5}
    trainer = algorithm(policy(lora), tiny.letters_reward, seed=3, **lengths, **arguments)
    trainer.compile(keras.optimizers.SGD(0.01, momentum=0.9))
    return trainer


def run(name):
    trainer, rows = make(name), []
    keep = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: rows.append([float(logs[k]) for k in LOGGED]))
    trainer.fit(["ab", "c", "ba"], batch_size=16, steps_per_epoch=RUNS[name][3], verbose=0, callbacks=[keep])
    return trainer, rows


def parts(variable):
    """The shape that one device holds."""
    return list(variable.value.addressable_shards[0].data.shape)


def held(trainer):
    """What a device holds of each trained variable, its shadows and its momentum."""
    momentum = trainer.optimizer.variables[2:]
    rows = zip(trainer.trainable_variables, trainer.anchor.shadows, trainer.reference.shadows, momentum, strict=True)
    return {row[0].path: [parts(v) for v in row] for row in rows}


def flops(trainer):
    programs = scale.trace_step(trainer, batch_size=16, prompt_length=4)
    return {name: trace().lower().compile().cost_analysis()["flops"] for name, trace in programs.items()}


def refused(trainer):
    for call in (trainer.fit, trainer.evaluate):
        try:
            call(["ab"] * 9, batch_size=9 if call == trainer.fit else 8, verbose=0)
        except ValueError as error:
            yield str(error)


def main():
    result = {"runs": {name: {} for name in RUNS}, "held": {}, "flops": {}}
    for name in RUNS:
        for mode in RUNS[name][4]:
            distribution.set_distribution(placement(mode, RUNS[name][2]))
            trainer, result["runs"][name][mode] = run(name)
            if mode == "batch, model":
                result["held"][name] = held(trainer)
            if name == "JBOND":
                result["flops"][mode] = flops(trainer)
                result["refused"] = list(refused(trainer))
            distribution.set_distribution(None)
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
