"""Our layers' weights as the matrices of a checkpoint, with LoRA merged or apart: NumPy, float32."""

import keras
import numpy as np
from keras import ops


def check_layer(layer, module):
    """Raises ValueError if the weights of a layer have no counterpart there."""
    if getattr(layer, "quantization_mode", None) is not None:
        raise ValueError(
            f"A quantized model cannot be exported: load the preset without quantization. Received: {module} with "
            f"{layer.quantization_mode}"
        )


def weights(part):
    """[(name, function that makes the array)] of a `Part`, with LoRA merged: W + (alpha / rank) A B, in float32."""
    layer, module = part.layer, part.module
    if part.kind == "norm":
        return [(f"{module}.weight", lambda: _array(layer.scale))]
    if part.kind == "head":
        return [(f"{module}.weight", lambda: _array(layer.reverse_embeddings).T)]
    if part.kind == "embedding":
        return [(f"{module}.weight", lambda: _embeddings(layer))]
    made = [(f"{module}.weight", lambda: _merged(layer))]
    return made if layer.bias is None else [*made, (f"{module}.bias", lambda: _array(layer.bias).reshape(-1))]


def size(part):
    """How many numbers `weights` of the part are, without making them."""
    layer = part.layer
    variables = {"norm": ["scale"], "head": ["reverse_embeddings"], "embedding": ["_embeddings"]}.get(part.kind)
    if variables is None:
        variables = ["_kernel"] if layer.bias is None else ["_kernel", "bias"]
    return sum(int(np.prod(getattr(layer, name).shape)) for name in variables)


def factors(layer):
    """(A, B, scaling) of a dense layer's LoRA, as `peft` has it: W + scaling B A.

    Keras' A has a factor for each head, h, and its B is shared: the change of head h is A_h B. So the rank r there becomes
    heads times r here: A stacks the A_h, and B repeats ours in a block for each head.

        A (heads r, in),   B (out, heads r)

    Args:
        layer: a `Dense` or `EinsumDense` with LoRA.

    Returns:
        Two float32 arrays and a float.
    """
    a, b = _array(layer.lora_kernel_a), _array(layer.lora_kernel_b)
    a = _in_order(layer, a)  # (in, heads, r)
    heads = a.shape[1]
    stacked = a.transpose(1, 2, 0).reshape(-1, a.shape[0])
    return stacked, np.kron(np.eye(heads, dtype="float32"), b.T), layer.lora_alpha / layer.lora_rank


def _merged(layer):
    kernel = _array(layer._kernel)
    if layer.lora_enabled:
        kernel = kernel + np.float32(layer.lora_alpha / layer.lora_rank) * (
            _array(layer.lora_kernel_a) @ _array(layer.lora_kernel_b)
        )
    kernel = _in_order(layer, kernel)  # (in, heads, size of one)
    return np.ascontiguousarray(kernel.reshape(kernel.shape[0], -1).T)


def _in_order(layer, kernel):
    """A kernel, or A of its LoRA, as (in, heads, last): `in` are the axes that are summed over, as the inputs have them."""
    if not isinstance(layer, keras.layers.EinsumDense):
        return kernel[:, None]
    inputs, rest = layer.equation.split(",")
    axes, output = rest.split("->")
    summed = [axis for axis in axes if axis in inputs and axis not in output]
    heads = [axis for axis in axes[:-1] if axis not in summed]
    kernel = kernel.transpose([axes.index(axis) for axis in (*summed, *heads, axes[-1])])
    return kernel.reshape(int(np.prod(kernel.shape[: len(summed)])), -1, kernel.shape[-1])


def _embeddings(layer):
    table = _array(layer._embeddings)
    if getattr(layer, "lora_enabled", False):
        change = _array(layer.lora_embeddings_a) @ _array(layer.lora_embeddings_b)
        table = table + np.float32(layer.lora_alpha / layer.lora_rank) * change
    return table


def _array(variable):
    return ops.convert_to_numpy(ops.cast(variable, "float32"))
