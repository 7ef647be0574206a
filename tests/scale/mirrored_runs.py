"""Run as a program on two logical devices, with TensorFlow: the same runs on one replica and under `MirroredStrategy`.

Prints one line of JSON: what each run logged, the devices that held its variables, error messages.
"""

import contextlib
import json
import sys

import keras
import numpy as np
import tensorflow as tf
import tiny

from keras_bond import BOND, JBOND, Reinforce
from keras_bond.quantiles import Learned
from keras_bond.rollout import Rollout, lengths, weights_of

lengths.FIRST_SEGMENT = 2  # two programs sample 5 tokens, on one device; on replicas it is one
LOGGED = ("loss", "kl_anchor", "kl_reference", "reward", "grad_norm", "anchor_distance")
JEFFREYS = {"beta": 0.4, "eta": 0.1, "gamma": 0.3}
PARTS = {"microbatch_size": 4, "sampling_batch_size": 2}
RUNS = {  # algorithm, its arguments, LoRA's rank, the optimizer's arguments
    "JBOND": (JBOND, JEFFREYS, None, {}),
    "JBOND, LoRA, in parts, clipped": (JBOND, JEFFREYS | PARTS, 2, {"global_clipnorm": 0.5}),
    "Reinforce": (Reinforce, {"beta_rl": 0.1}, None, {}),
}


def policy(lora=None):
    return tiny.causal_lm(seed=11, scale=0.3, lora=lora, alphabet="abcd", num_query_heads=4, head_dim=8)


def make(name, optimizer=None):
    algorithm, arguments, lora, clipping = RUNS[name]
    lengths = {"max_prompt_length": 4, "max_completion_length": 5}
    trainer = algorithm(policy(lora), tiny.letters_reward, seed=3, **lengths, **arguments)
    trainer.compile(optimizer or keras.optimizers.SGD(0.01, momentum=0.9, **clipping))
    return trainer


def run(name, scope):
    with scope:
        trainer = make(name)
    steps = []
    keep = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: steps.append([float(logs[k]) for k in LOGGED]))
    means = trainer.fit(["ab", "c", "ba"], batch_size=16, steps_per_epoch=10, verbose=0, callbacks=[keep]).history
    logged = {"steps": steps, "means": [means[log][0] for log in LOGGED]}
    if name == "JBOND":
        evaluated = trainer.evaluate(["ab", "c", "ba", "cb"] * 4, batch_size=16, verbose=0)
        logged["evaluated"] = [evaluated[log] for log in LOGGED]
    return trainer, logged


def scores(scope):
    """Of two completions for each of three prompts, which two replicas do not divide, though they divide the six."""
    with scope:
        model = policy()
        rollout = Rollout(model, 4, 5)
        prompt = rollout.pad(rollout.encode(["ab", "c", "ba"]))
        completions = np.random.default_rng(0).integers(4, 8, (6, 5)).astype("int32")
        return keras.ops.convert_to_numpy(rollout.score(weights_of(model), *prompt, completions))


def refused(make_it):
    try:
        make_it()
    except ValueError as error:
        return str(error)


def main():
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    result = {"runs": {}, "devices": [], "apart": 0.0}
    for name in RUNS:
        _, alone = run(name, contextlib.nullcontext())
        trainer, mirrored = run(name, strategy.scope())
        result["runs"][name] = {"one": alone, "mirrored": mirrored}
        for variable in [*trainer.trainable_variables, *trainer.anchor.shadows, *trainer.optimizer.variables]:
            copies = strategy.experimental_local_results(variable.value)
            result["devices"].append([copy.device.split("/")[-1] for copy in copies])
            result["apart"] = max(result["apart"], *(np.abs(copies[0] - copy).max() for copy in copies))
    result["scores"] = [scores(scope).tolist() for scope in (contextlib.nullcontext(), strategy.scope())]
    elsewhere, optimizer = policy(), keras.optimizers.SGD(0.01)
    result["refused"] = [refused(lambda: trainer.fit(["ab"], batch_size=3, verbose=0))]
    with strategy.scope():
        accumulating = keras.optimizers.SGD(0.01, gradient_accumulation_steps=2)
        result["refused"] += [
            refused(lambda: JBOND(elsewhere, tiny.letters_reward).compile()),
            refused(lambda: make("JBOND", optimizer)),
            refused(lambda: make("JBOND", accumulating)),
            refused(lambda: BOND(policy(), tiny.letters_reward, quantiles=Learned())),
        ]
    json.dump(result, sys.stdout, default=float)


if __name__ == "__main__":
    main()
