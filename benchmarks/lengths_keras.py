"""A contestant of `lengths.py`: steps of `fit` on this backend, with completions of random lengths."""

import json
import math
import pathlib
import sys
import time

import keras
import keras_hub
import numpy as np
import step
from keras import ops
from step_keras import Stopwatch, reward
from turns import serve

from keras_bond import JBOND, presets
from keras_bond.experiments.align import PRESET
from keras_bond.experiments.provenance import device, host, versions
from keras_bond.scale.configurations import CONFIGURATIONS, make_policy

PROMPT_LENGTH, LONG = 8, 176


def policy_of(work):
    """The model by its name, its LoRA enabled."""
    name, dtype = work["model"], work["dtype"]
    if name in CONFIGURATIONS:
        return make_policy(name, dtype, work["lora"])
    if step.MODELS[name]:
        policy = step.random_gemma({**step.MODELS[name], "dtype": dtype})
    else:
        policy = keras_hub.models.CausalLM.from_preset(presets.path(PRESET), dtype=dtype)
    if work["lora"]:
        policy.backbone.enable_lora(work["lora"])
    return policy


def prompts_of(tokenizer, kind, batch_size, seed=0):
    """Texts of the wanted numbers of tokens, start token included; all batches of `batch_size` in a row are alike."""
    rng = np.random.default_rng(seed)
    if kind == "even":
        lengths = [PROMPT_LENGTH] * batch_size
    elif kind == "one-long":
        lengths = [5] * (batch_size - 1) + [170]
    else:
        lengths = np.minimum(PROMPT_LENGTH / rng.uniform(size=batch_size), LONG).astype(int).tolist()
    word = next(w for w in ("we", "the", "a", "b") if len(tokenizer(w)) == len(tokenizer(f"{w} {w}")) - 1 == 1)
    return [" ".join([word] * (length - 1)) for length in lengths]


def set_lengths(rollout, mean):
    """The stop token has the probability 1 / mean after every token, in all that `rollout` computes."""
    logits, (stop,) = rollout.logits, rollout.stop_token_ids

    def stopping(hidden):
        values = ops.cast(logits(hidden), "float32")
        is_stop = ops.arange(values.shape[-1]) == stop
        others = ops.logsumexp(ops.where(is_stop, -1e30, values), axis=-1, keepdims=True)
        return ops.where(is_stop, others - math.log(mean - 1), values)

    rollout.logits = stopping


def read_as_bundled(rollout):
    """Tokens that the bundled tokenizer does not know are read as its last one: a real model's sizes go with it here."""
    decode, last = rollout.decode, rollout.tokenizer.vocabulary_size() - 1
    rollout.decode = lambda samples: decode(samples._replace(token_ids=np.minimum(samples.token_ids, last)))


class Counting(Stopwatch):
    """Counts as well: real tokens of a step, positions of its update, and the operations of their matrix products."""

    def __init__(self, trainer):
        super().__init__(trainer)
        config, lora = trainer.policy.backbone.get_config(), len(trainer.trainable_variables) < len(trainer.policy.variables)
        collect, self.counts = trainer.collect, []

        def counted(*arguments):
            t = collect(*arguments)
            masks = [ops.convert_to_numpy(mask) for mask in (t.completion_mask, t.contender_mask)]
            whole = [(*t.prompt_ids.shape, sum(map(len, masks)), masks[0].shape[1])]
            parts = [(*p.prompt_ids.shape, p.token_ids.shape[0] * p.token_ids.shape[1], p.token_ids.shape[2])
                     for p in getattr(t, "parts", None) or ()] or whole  # fmt: skip
            forward = sum(step.forward_flops(config, prompts, rows, width, length) for prompts, width, rows, length in parts)
            self.counts.append(
                {
                    "real": float(sum(mask.sum() for mask in masks)),
                    "positions": float(sum(rows * length for _, _, rows, length in parts)),
                    "flops": float(forward * (2 if lora else 3)),  # frozen weights have no gradient
                }
            )
            return t

        trainer.collect = counted


def peak(dtype):
    """Operations a second of a large matrix product, the median of ten."""
    side = 8192 if device() != host() else 2048
    x = keras.random.normal((side, side), dtype=dtype)
    seconds = []
    for _ in range(12):
        started = time.perf_counter()
        ops.convert_to_numpy(ops.matmul(x, x)[0, 0])
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / float(np.median(seconds[2:]))


def main(work):
    policy = policy_of(work)
    settings = {"n": 2, "max_prompt_length": LONG, "max_completion_length": work["budget"]}
    settings |= {"stop_token_ids": [policy.preprocessor.tokenizer.end_token_id], "microbatch_size": work["microbatch_size"]}
    trainer = JBOND(policy, reward, **settings)
    read_as_bundled(trainer.rollout)
    if work["mean"]:
        set_lengths(trainer.rollout, work["mean"])
    trainer.compile(keras.optimizers.Adam(1e-5))
    prompts = prompts_of(policy.preprocessor.tokenizer, work["prompts"], work["batch_size"])
    watch = Counting(trainer)

    def steps(count):
        watch.wholes, watch.split, watch.counts = [], [], []
        trainer.fit(prompts, batch_size=work["batch_size"], steps_per_epoch=2 * count, callbacks=watch, verbose=0)
        return [p | w | c for p, w, c in zip(watch.split, watch.wholes, watch.counts[::2], strict=True)]

    serve({**versions(), "gpu": device() if device() != host() else None, "peak": peak(work["dtype"])}, steps)


if __name__ == "__main__":
    main(json.loads(pathlib.Path(sys.argv[1]).read_text()))
