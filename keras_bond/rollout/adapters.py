"""LoRA beside the frozen weights: x W + s (x A) B in place of x (W + s A B), and several adapters on one product x W.

Keras adds an adapter to its kernel before every product. Beside it, neither the sum nor, in the backward pass, the gradient
of the sum ever exists, and nothing is rounded to the kernel's dtype: in bfloat16 a sum loses what is below 2^-9 of a weight.
Sampling, scoring and the update all see it so: log-probabilities must be those of the distribution that was sampled from.
"""

import contextlib
import contextvars
import types
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bond.rollout.functional import using

_SIDES: contextvars.ContextVar[Any] = contextvars.ContextVar("_SIDES", default=None)
"""(scopes, counts) within `side_by_side`: of a prompt's rows the first counts[0] take A and B from scopes[0], and so on."""


def set_beside(model):
    """Let the LoRA layers of `model` compute beside their kernels, from now on.

    Layers that are more than a product (an activation, a quantized kernel, a subclass) keep Keras' way.

    Returns:
        Whether these adapters are all that is trained: then models that differ in the trainable variables share x W, and
        `side_by_side` runs them in one pass.
    """
    layers = [layer for layer in model._flatten_layers() if _is_product_with_adapter(layer)]
    for layer in layers:
        layer.call = types.MethodType(_product_and_adapter, layer)
    factors = [factor for layer in layers for factor in (layer.lora_kernel_a, layer.lora_kernel_b)]
    return bool(layers) and {id(v) for v in model.trainable_variables} == {id(factor) for factor in factors}


@contextlib.contextmanager
def side_by_side(model, weights, counts):
    """`using`, of several weights in one pass, for a model of which `set_beside` says `True`.

    Args:
        model: a `CausalLM`.
        weights: sequence of `Weights`; all have the frozen weights of the first.
        counts: sequence of int: of the rows of a prompt, which stand side by side, the first `counts[0]` are computed with
            `weights[0]`, the next `counts[1]` with `weights[1]`, and so on.
    """
    with using(model, weights[0]):
        if len(weights) == 1:
            yield
            return
        token = _SIDES.set(([using(model, w) for w in weights], counts))
        try:
            yield
        finally:
            _SIDES.reset(token)


def split_sides(rows, counts):
    """Of the rows (B sum(counts), ...) of B prompts those of each side, [(B count, ...) for count in counts]."""
    of_prompts = ops.reshape(rows, (-1, sum(counts), *rows.shape[1:]))
    ends = np.cumsum(counts).tolist()
    sides = [of_prompts[:, end - count : end] for end, count in zip(ends, counts, strict=True)]
    return [ops.reshape(side, (-1, *rows.shape[1:])) for side in sides]


def join_sides(sides, counts):
    """The rows of `split_sides`, in an array of their own."""
    of_prompts = [ops.reshape(side, (-1, count, *side.shape[1:])) for side, count in zip(sides, counts, strict=True)]
    return ops.reshape(ops.concatenate(of_prompts, axis=1), (-1, *sides[0].shape[1:]))


def _is_product_with_adapter(layer):
    if type(layer) not in (keras.layers.Dense, keras.layers.EinsumDense) or not layer.lora_enabled:
        return False
    last_stays = type(layer) is keras.layers.Dense or _last_axis_stays(layer.equation)
    return last_stays and layer.quantization_mode is None and layer.activation in (None, keras.activations.linear)


def _last_axis_stays(equation):
    """Whether the kernel's last axis, which B makes, is the last of the output: "btd,ndh->btnh"."""
    inputs, output = equation.split("->")
    return inputs[-1] == output[-1]


def _product_and_adapter(layer, inputs, training=None):
    """What stands in for `call`: inputs W + (alpha / rank) (inputs A) B + bias; the factors may be finer than the kernel."""
    output = ops.cast(ops.add(_product(layer, inputs, layer._kernel), _adapters(layer, inputs)), layer.compute_dtype)
    return output if layer.bias is None else ops.add(output, layer.bias)


def _adapters(layer, inputs):
    if (sides := _SIDES.get()) is None:
        return _adapter(layer, inputs)
    scopes, counts = sides
    adapted = []
    for scope, rows in zip(scopes, split_sides(inputs, counts), strict=True):
        with scope:
            adapted.append(_adapter(layer, rows))
    return join_sides(adapted, counts)


def _adapter(layer, inputs):
    factor = layer.lora_alpha / layer.lora_rank
    return factor * ops.matmul(_product(layer, inputs, layer.lora_kernel_a), layer.lora_kernel_b)


def _product(layer, inputs, kernel):
    if type(layer) is keras.layers.Dense:
        return ops.matmul(inputs, kernel)
    return ops.einsum(layer.equation, inputs, kernel)
