"""The contestants of `step.py` that run in this environment: keras_bond, and KerasHub's own means."""

import argparse
import json
import pathlib
import time

import keras
import keras_hub
import numpy as np
from common import use_keras_products
from keras import ops
from turns import serve

from keras_bond import JBOND
from keras_bond.experiments.provenance import device, host, versions
from keras_bond.schedules import LinearWarmup


def load(work):
    return keras_hub.models.CausalLM.from_preset(work["preset"])


def optimizer(work):
    schedule = LinearWarmup(work["learning_rate"], work["warmup_steps"])
    return keras.optimizers.SGD(schedule, momentum=work["momentum"], global_clipnorm=work["clip_norm"])


def reward(prompts, completions):
    """How many different characters a completion has: the same cheap reward for every contestant."""
    return [len(set(completion)) for completion in completions]


def wait(tensors):
    """Until the device has computed them."""
    for tensor in keras.tree.flatten(tensors):
        if tensor is not None:
            ops.convert_to_numpy(tensor)


class Stopwatch(keras.callbacks.Callback):
    """Seconds of the steps of `fit`: of every second one as a whole, of the others part by part.

    To time a part is to wait for it, and on JAX the host would otherwise compute rewards meanwhile.
    """

    def __init__(self, trainer):
        super().__init__()
        self.by_parts, self.wholes, self.split = False, [], []
        trainer.rollout.sample_each = self._timed("sampling", trainer.rollout.sample_each)
        trainer.collect = self._timed("collect", trainer.collect)

    def _timed(self, part, function):
        def timed(*arguments):
            started = time.perf_counter()
            result = function(*arguments)
            if self.by_parts:
                wait(result)
                self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started
            return result

        return timed

    def on_train_batch_begin(self, batch, logs=None):
        self.by_parts, self.seconds = bool(batch % 2), {}
        self.started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        float(logs["loss"])  # waits for the update
        total = time.perf_counter() - self.started
        if self.by_parts:
            sampling, collect = self.seconds["sampling"], self.seconds["collect"]
            self.split.append({"sampling": sampling, "scoring": collect - sampling, "update": total - collect})
        else:
            self.wholes.append({"total": total})


def ours(work, own_products=True, jit_compile="auto", **settings):
    """`fit` of J-BOND. No token stops: every completion has the full length.

    `own_products`: whether dense layers compute as `rollout.products` has it, or as Keras does.
    """
    lengths = {"max_prompt_length": work["prompt_length"], "max_completion_length": work["completion_length"]}
    trainer = JBOND(load(work), reward, **lengths, stop_token_ids=(), **{**work["settings"], **settings})
    trainer.compile(optimizer(work), jit_compile=jit_compile)
    if not own_products:
        use_keras_products(trainer.policy)
    watch = Stopwatch(trainer)

    def steps(count):
        watch.wholes, watch.split = [], []
        trainer.fit(work["prompts"], batch_size=work["batch_size"], steps_per_epoch=2 * count, callbacks=watch, verbose=0)
        return [split | whole for split, whole in zip(watch.split, watch.wholes, strict=True)]

    return steps


class LogProb(keras.Model):
    """log pi(y|x) of each row from the full logits of a `CausalLM`, and J-BOND's loss for Keras' own train step."""

    def __init__(self, causal_lm, work):
        super().__init__()
        self.causal_lm, self.work = causal_lm, work
        self.built = True

    def call(self, inputs):
        log_probs = ops.log_softmax(self.causal_lm(inputs))[:, :-1]
        chosen = ops.take_along_axis(log_probs, ops.expand_dims(inputs["token_ids"][:, 1:], 2), axis=2)
        return ops.sum(chosen[:, self.work["prompt_length"] - 1 :, 0], axis=1)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        rows, n, beta = self.work["batch_size"], self.work["settings"]["n"], self.work["settings"]["beta"]
        log_prob, best_log_prob = y_pred[:rows], y_pred[rows:]
        y = {name: ops.convert_to_tensor(value) for name, value in y.items()}  # on Torch they come as they are
        returns = y["reward"] - (ops.stop_gradient(log_prob) - y["anchor_log_prob"]) / (n - 1)
        advantage = returns - (ops.sum(returns) - returns) / (rows - 1)
        return -(1 - beta) * ops.mean(best_log_prob) - beta * (n - 1) * ops.mean(advantage * log_prob)


def keras_hub_alone(work):
    """What a user of KerasHub would write: `generate()`, then Keras' own train step, with a model each for three roles."""
    tokenizer = load(work).preprocessor.tokenizer
    policy, anchor, reference = (LogProb(load(work), work) for _ in range(3))
    for model in (policy, anchor, reference):
        model.compile(optimizer(work))
        model.causal_lm.preprocessor = None
        model.causal_lm.compile(sampler=keras_hub.samplers.RandomSampler())
    n, eta, prompt_length = work["settings"]["n"], work["settings"]["eta"], work["prompt_length"]
    rng = np.random.default_rng(0)

    def inputs(token_ids, length):
        return {"token_ids": token_ids, "padding_mask": np.arange(token_ids.shape[1]) < np.full((len(token_ids), 1), length)}

    def generate(model, prompt_ids):
        padded = np.pad(prompt_ids, ((0, 0), (0, work["completion_length"])))
        return np.asarray(model.causal_lm.generate(inputs(padded, prompt_length), stop_token_ids=None)["token_ids"])

    def texts(token_ids):
        found = tokenizer.detokenize(token_ids[:, prompt_length:])
        return [t.decode("utf-8", "replace") for t in found.numpy()] if hasattr(found, "numpy") else found

    def step():
        prompt_ids = rng.choice(np.array(work["token_ids"], "int32"), work["batch_size"], replace=False)
        times = [time.perf_counter()]
        samples = generate(policy, prompt_ids)
        anchor_samples = generate(anchor, np.repeat(prompt_ids, n, axis=0))
        times.append(time.perf_counter())
        whole = inputs(samples, samples.shape[1])
        anchor_log_prob, _ = (np.asarray(model.predict_on_batch(whole)) for model in (anchor, reference))
        rewards = np.array(reward(None, texts(samples) + texts(anchor_samples)), "float32")
        rewards, anchor_rewards = rewards[: len(samples)], rewards[len(samples) :].reshape(-1, n)
        best = anchor_samples[n * np.arange(len(samples)) + anchor_rewards.argmax(axis=1)]
        penalty = np.where(rewards < anchor_rewards.min(axis=1), -(2**n) * np.log(2), 0).astype("float32")
        times.append(time.perf_counter())
        both = np.concatenate([samples, best])
        policy.train_on_batch(inputs(both, both.shape[1]), {"reward": penalty, "anchor_log_prob": anchor_log_prob})
        for shadow, variable in zip(anchor.trainable_variables, policy.trainable_variables, strict=True):
            shadow.assign((1 - eta) * shadow + eta * variable)
        wait([v.value for v in anchor.trainable_variables])
        times.append(time.perf_counter())
        return dict(zip(("sampling", "scoring", "update"), np.diff(times).tolist(), strict=True), total=times[-1] - times[0])

    return lambda count: [step() for _ in range(count)]


CONTESTANTS = {
    "ours": ours,
    "ours, all samples": lambda work: ours(work, variance_reduction=True),
    "ours, jit_compile": lambda work: ours(work, jit_compile=True),
    "ours, Keras' products": lambda work: ours(work, own_products=False),
    "keras_hub": keras_hub_alone,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contestant", choices=CONTESTANTS)
    parser.add_argument("work", type=pathlib.Path, help="JSON, of `step.py`")
    arguments = parser.parse_args()
    about = {**versions(), "gpu": device() if device() != host() else None}
    serve(about, CONTESTANTS[arguments.contestant](json.loads(arguments.work.read_text())))
