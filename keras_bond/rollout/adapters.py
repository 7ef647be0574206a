"""LoRA beside the frozen weights: x W + s (x A) B in place of x (W + s A B), and several adapters on one product x W.

Keras adds an adapter to its kernel before every product. Beside it, neither the sum nor, in the backward pass, the gradient
of the sum ever exists, and nothing is rounded to the kernel's dtype: in bfloat16 a sum loses what is below 2^-9 of a weight.
Sampling, scoring and the update all see it so: log-probabilities must be those of the distribution that was sampled from.
Layers without an adapter are here for the gradient of their kernel: see `product`.
"""

import contextlib
import contextvars
import types
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bond.rollout.functional import using
from keras_bond.rollout.products import product

_SIDES: contextvars.ContextVar[Any] = contextvars.ContextVar("_SIDES", default=None)
"""(scopes, own) within `side_by_side`: row i takes A and B from the scope s where own[i, s] is 1; the others are 0."""


def set_products(model):
    """Let the dense layers of `model` compute by `product`, and LoRA beside their kernels, from now on.

    Layers that are more than a product (an activation, a quantized kernel, a subclass) keep Keras' way, and so do those that
    compute anew for the backward pass by themselves (`keras.RematScope`).
    """
    for layer in model._flatten_layers():
        if _is_product(layer):
            layer.call = types.MethodType(_product_and_adapter, layer)


def differ_in_adapters_alone(model):
    """Whether models with other values of what is trained in `model` share every product x W: `side_by_side` runs them."""
    layers = [layer for layer in model._flatten_layers() if "call" in vars(layer) and _is_product(layer)]
    factors = {id(factor) for layer in layers if layer.lora_enabled for factor in (layer.lora_kernel_a, layer.lora_kernel_b)}
    return bool(factors) and factors == {id(v) for v in model.trainable_variables}


@contextlib.contextmanager
def side_by_side(model, weights, own):
    """`using`, of several weights in one pass, for a model that says `differ_in_adapters_alone`.

    All adapters are one of all their ranks, of which a row keeps the part that is its own: ((x [A_1 A_2]) * own) [B_1; B_2].

    Args:
        model: a `CausalLM`.
        weights: sequence of S `Weights`; all have the frozen weights of the first.
        own: (R, S), 1 where the row is computed with these weights, 0 elsewhere.
    """
    with using(model, weights[0]):
        if len(weights) == 1:
            yield
            return
        token = _SIDES.set(([using(model, w) for w in weights], own))
        try:
            yield
        finally:
            _SIDES.reset(token)


def split_sides(rows, counts):
    """Of the rows (B sum(counts), ...) of B prompts those of each side, [(B, count, ...) for count in counts]."""
    each = sum(counts)
    of_prompts = ops.reshape(rows, (rows.shape[0] // each, each, *rows.shape[1:]))  # also where there are no columns
    ends = np.cumsum(counts).tolist()
    return [of_prompts[:, end - count : end] for count, end in zip(counts, ends, strict=True)]


def join_sides(sides):
    """The rows (B sum(counts), ...) of `split_sides`: those of a prompt next to each other."""
    of_prompts = ops.concatenate(sides, axis=1)
    prompts, each, *shape = of_prompts.shape
    return ops.reshape(of_prompts, (prompts * each, *shape))


def _is_product(layer):
    if type(layer) not in (keras.layers.Dense, keras.layers.EinsumDense):
        return False
    plain_product = type(layer) is keras.layers.Dense or _is_plain(layer.equation)
    as_built = layer.quantization_mode is None and layer._remat_mode is None
    return plain_product and as_built and layer.activation in (None, keras.activations.linear)


def _is_plain(equation):
    """Whether the output has the axes that only the inputs have, then those that only the kernel has, with the last of the
    kernel, which B makes, among these: "btd,ndh->btnh"."""
    operands, output = equation.split("->")
    inputs, kernel = operands.split(",")
    own = [axis for axis in inputs if axis not in kernel] + [axis for axis in kernel if axis not in inputs]
    return output == "".join(own) and output[-1] == kernel[-1] and "." not in equation


def _product_and_adapter(layer, inputs, training=None):
    """What stands in for `call`: inputs W + (alpha / rank) (inputs A) B + bias; the factors may be finer than the kernel."""
    output = _product(layer, inputs, layer._kernel)
    if layer.lora_enabled:
        output = ops.cast(ops.add(output, _adapter(layer, inputs)), layer.compute_dtype)
    return output if layer.bias is None else ops.add(output, layer.bias)


def _adapter(layer, inputs):
    scopes, own = _SIDES.get() or ([contextlib.nullcontext()], None)
    all_a, all_b = [], []
    for scope in scopes:
        with scope:
            all_a.append(layer.lora_kernel_a.value)
            all_b.append(layer.lora_kernel_b.value)
    a, b = ops.concatenate(all_a, axis=-1), ops.concatenate(all_b, axis=0)
    low = _product(layer, ops.cast(inputs, a.dtype), a)
    if own is not None:
        own = ops.cast(ops.repeat(own, layer.lora_rank, axis=1), low.dtype)
        low = low * ops.reshape(own, (own.shape[0], *[1] * (len(low.shape) - 2), own.shape[1]))
    return layer.lora_alpha / layer.lora_rank * ops.matmul(low, b)


def _product(layer, inputs, kernel):
    if type(layer) is keras.layers.Dense:
        return ops.matmul(inputs, kernel)
    return product(layer.equation, inputs, kernel)
