"""What an update of J-BOND needs in memory, reckoned from models that have shapes and no values. On JAX.

A decoder's memory is linear in its layers, so two small models, of one and of two layers, tell that of the whole: sums over
their variables and over what automatic differentiation keeps of their forward pass. That is an upper estimate: a compiler
computes some of it twice instead. XLA for CPUs kept 0.62 of it (Gemma 2B, LoRA, float32, by the bytes of its program; one
completion a prompt).
"""

import math
from typing import NamedTuple

import keras
import numpy as np

from keras_bond import families
from keras_bond.rollout import Rollout, Weights, using
from keras_bond.rollout.rollout import LOGITS_AT_ONCE
from keras_bond.trainers import JBOND

GIB = 2**30
MARGIN = 0.9
"""The share of a device's memory that is planned with: the rest is for fragments and what the compiler wants."""
PROMPTS = 11
"""Of the traced forward pass. A first axis of this length, or of twice this length, is one of rows: no weight has it."""


class Device(NamedTuple):
    """An accelerator, or several in a mesh: rows of a batch are spread over the one axis, weights over the other."""

    name: str
    gib: float
    """Of one chip."""
    batch: int = 1
    """Chips that share the rows."""
    model: int = 1
    """Chips that share the weights."""


DEVICES = (
    Device("T4, P100", 15),
    Device("A100 40 GB", 40),
    Device("A100, H100 80 GB", 80),
    Device("TPU v5e-8, mesh 2 x 4", 15.75, batch=2, model=4),
    Device("TPU v5e-8, mesh 1 x 8", 15.75, batch=1, model=8),
)


class Memory(NamedTuple):
    """Bytes, of one device that holds all; the methods put them together per chip."""

    parameters: float
    """A number, not bytes."""
    weights: float
    optimizer: float
    """Adam's two moments."""
    shadows: float
    """Anchor and reference, float32, of the trainable variables."""
    gradients: float
    copies: float
    """Of weights that are computed with in another dtype than they are held in."""
    logits: float
    """Of one chunk of positions, float32, with their gradient."""
    activations: float
    """What the backward pass needs of the forward pass, per prompt: for the prompt, and for two completions."""
    scored: float
    """What one layer makes of a prompt and a completion: about what a forward pass alone has in memory, per prompt."""
    read: float
    """What one layer makes of a prompt before samples are drawn, per prompt: with LoRA twice, for the anchor beside it."""
    cache: float
    """Keys and values while sampling, per prompt: one row for each sample."""
    split_heads: int
    """Heads of keys and values that can be spread over chips."""

    def held(self, device):
        """What is there all the time, per chip."""
        return (self.weights + self.optimizer + self.shadows) / device.model

    def updating(self, device, microbatch_size):
        """While the policy is updated, per chip."""
        fixed = (self.gradients + self.copies) / device.model + self.logits
        return self.held(device) + fixed + self.activations * microbatch_size / device.batch

    def sampling(self, device, sampling_batch_size):
        """While completions are sampled, per chip."""
        heads = device.model if self.split_heads % device.model == 0 else 1
        return self._forward(device) + max(self.cache / heads, self.read) / device.batch * sampling_batch_size

    def scoring(self, device, batch_size):
        """While completions are scored, per chip."""
        return self._forward(device) + self.scored / device.batch * batch_size

    def _forward(self, device):
        return self.held(device) + self.copies / device.model + self.logits

    def settings(self, device, batch_size=128):
        """(batch_size, sampling_batch_size, microbatch_size) that fit, each the largest; `None` where not even one does."""
        limit = MARGIN * device.gib * GIB
        sizes = [size for size in (batch_size >> i for i in range(batch_size.bit_length())) if size >= device.batch]

        def largest(need, sizes):
            return next((size for size in sizes if need(device, size) <= limit), 0)

        batch = largest(self.scoring, sizes)
        parts = [size for size in sizes if size <= batch]
        found = batch, largest(self.sampling, parts), largest(self.updating, parts)
        return found if all(found) else None


def memory(name, *, lora_rank=0, prompt_length=64, completion_length=64, n=2):
    """`Memory` of J-BOND with Adam on a Gemma, with the paper's estimator (`variance_reduction=False`).

    Not counted: the programs, the compiler's own work space (a second copy of the gradients, it may be, while those of
    microbatches are added up), and what it saves by computing cheap things twice.

    Args:
        name: one of `scale.CONFIGURATIONS`.
        lora_rank: 0 for full fine-tuning. With LoRA the frozen weights are bfloat16 and the trained factors float32, as
            KerasHub has them with `dtype="bfloat16"`. Without, a learning rate of 3e-6 would round away in bfloat16, so it
            is `"mixed_bfloat16"`: float32 weights, bfloat16 computation.
        prompt_length, completion_length: tokens.
        n: samples of the anchor per prompt.

    Raises:
        ValueError: if there is no such model, or the backend is not JAX.

    Example:

    ```python
    memory("gemma_2b", lora_rank=8).settings(DEVICES[0])  # (128, 128, 4): prompts a batch, sampled, updated at a time
    ```
    """
    from keras_bond.scale import CONFIGURATIONS  # which needs JAX

    if name not in CONFIGURATIONS:
        raise ValueError(f"`name` must be one of {', '.join(CONFIGURATIONS)}. Received: name={name!r}")
    _, sizes = CONFIGURATIONS[name]
    one, two = (_figures(name, layers, lora_rank, prompt_length, completion_length, n) for layers in (1, 2))
    whole = {key: one[key] + (sizes["num_layers"] - 1) * (two[key] - one[key]) for key in one}
    read, follow = prompt_length - 1, completion_length
    of_a_token = (two["activations"] - one["activations"]) / (read + 2 * follow)
    return Memory(
        **whole,
        logits=2 * 4 * LOGITS_AT_ONCE,
        scored=of_a_token * (read + follow),
        read=of_a_token * read * (2 if lora_rank else 1),
        split_heads=sizes["num_key_value_heads"],
    )


def table_of(memories, devices=DEVICES, batch_size=128):
    """The largest settings that fit, for each model on each device: a list of dicts with GiB per chip (sampling or scoring).

    Args:
        memories: dict, a model's name as it is to be shown -> `Memory`.
        devices: list of `Device`.
        batch_size: prompts an update, at most.
    """
    rows = []
    for device in devices:
        for name, need in memories.items():
            found = need.settings(device, batch_size)
            row = {"device": device.name, "GiB a chip": device.gib, "model": name, "held": need.held(device) / GIB}
            row |= dict.fromkeys(("batch_size", "sampling_batch_size", "microbatch_size", "sampling", "updating"), "")
            if found:
                batch, sampled, micro = found
                row |= {"batch_size": str(batch), "sampling_batch_size": str(sampled), "microbatch_size": str(micro)}
                peaks = max(need.sampling(device, sampled), need.scoring(device, batch)), need.updating(device, micro)
                row |= {name: f"{peak / GIB:.1f}" for name, peak in zip(("sampling", "updating"), peaks, strict=True)}
            else:
                row["batch_size"] = "does not fit"
            rows.append(row)
    return rows


def _figures(name, layers, lora_rank, width, budget, n):
    """What is linear in the layers: a dict by the fields of `Memory`."""
    from keras_bond.scale import abstract

    trainer = abstract(lambda: _trainer(name, layers, lora_rank, width, budget, n))
    policy = trainer.policy
    computed_otherwise = [v for v in policy.variables if str(v.dtype) != policy.compute_dtype]
    return {
        "parameters": sum(math.prod(v.shape) for v in policy.variables),
        "weights": bytes_of(policy.variables),
        "optimizer": bytes_of(trainer.optimizer.variables),
        "shadows": bytes_of([*trainer.anchor.variables, *trainer.reference.variables]),
        "gradients": bytes_of(policy.trainable_variables),
        "copies": 2 * sum(math.prod(v.shape) for v in computed_otherwise),  # in bfloat16
        "activations": _kept(trainer.rollout, width, budget) / PROMPTS,
        "cache": (1 + n) * _cache(policy, width + budget),
    }


def _trainer(name, layers, lora_rank, width, budget, n):
    from keras_bond.scale import make_policy

    policy = make_policy(name, "bfloat16" if lora_rank else "mixed_bfloat16", lora_rank, num_layers=layers)
    lengths = {"max_prompt_length": width, "max_completion_length": budget}
    trainer = JBOND(policy, len, n=n, variance_reduction=False, **lengths)
    trainer.compile(keras.optimizers.Adam(1e-4))
    trainer.optimizer.build(trainer.trainable_variables)
    return trainer


def _kept(rollout: Rollout, width, budget):
    """Bytes that the backward pass of `Rollout.hidden` needs of the forward pass, for `PROMPTS`; weights not counted.

    Two completions a prompt: the policy's sample, and the best of the anchor's.
    """
    import jax

    policy, groups, rows = rollout.causal_lm, [], (PROMPTS, 2 * PROMPTS)
    for variables in (policy.trainable_variables, policy.non_trainable_variables):
        groups.append([jax.ShapeDtypeStruct(v.shape, v.dtype) for v in variables])
    prompt, completion = (jax.ShapeDtypeStruct(s, "int32") for s in zip(rows, (width, budget), strict=True))

    def backward(trainable, frozen, ids, mask, completion_ids):
        def hidden(trainable):
            with using(policy, Weights(trainable, frozen)):
                return rollout.hidden(ids, mask, completion_ids)

        return jax.vjp(hidden, trainable)[1]

    kept = jax.tree.leaves(jax.eval_shape(backward, *groups, prompt, prompt, completion))
    return bytes_of(array for array in kept if array.shape and array.shape[0] in rows)


def _cache(policy, length):
    import jax

    cache = jax.eval_shape(lambda: families.of(policy).new_cache(1, length))
    return bytes_of(jax.tree.leaves(cache))


def bytes_of(arrays):
    """What arrays or variables, of which shapes and dtypes are known, take."""
    return sum(math.prod(array.shape) * _itemsize(array) for array in arrays)


def _itemsize(array):
    return 2 if str(array.dtype) == "bfloat16" else np.dtype(str(array.dtype)).itemsize
