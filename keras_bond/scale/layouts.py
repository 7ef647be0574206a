"""Which axis of each variable is split over the chips of a model axis."""

import re

import keras

# The axes to split, first choice first: the first that the mesh divides is taken. Heads before others, so that attention
# needs no exchange; where there are too few heads, the model's width.
_KERNELS = (
    (r"token_embedding/embeddings", (0, 1)),  # (vocabulary, width)
    (r"decoder_block_\d+/attention/query/kernel", (0, 1, 2)),  # (heads, width, head_dim)
    (r"decoder_block_\d+/attention/(?:key|value)/kernel", (0, 1, 2)),
    (r"decoder_block_\d+/attention/attention_output/kernel", (0, 2, 1)),  # (heads, head_dim, width)
    (r"decoder_block_\d+/ffw_gating(?:_2)?/kernel", (1, 0)),  # (width, intermediate)
    (r"decoder_block_\d+/ffw_linear/kernel", (0, 1)),  # (intermediate, width)
)
_WHOLE = (
    r"decoder_block_\d+/(?:pre|post)_(?:attention|ffw)_norm/scale",
    r"decoder_block_\d+/attention/(?:query|key)_norm/scale",
    r"final_normalization/scale",
)


def layout_map(policy, mesh, model_axis="model"):
    """The layout of a policy's variables for `keras.distribution.ModelParallel`.

    Kernels and the embedding are split over the model axis of the mesh, normalisations are whole on every chip. LoRA's A is
    split as its kernel's first axes are, B as its last; a trainer's anchor and reference are laid out as the variables that
    they shadow, and Keras' optimizers likewise. An axis that the mesh does not divide is not split: then the next one is,
    and if there is none the variable is whole on every chip.

    Args:
        policy: a `CausalLM` or a backbone of Gemma, Gemma 2 or Gemma 3 (text), with LoRA or without. Only names and shapes
            are read, so it may come from `keras_bond.scale.abstract`, which takes no memory.
        mesh: a `keras.distribution.DeviceMesh`.
        model_axis: the name of the mesh's axis that splits variables.

    Returns:
        `keras.distribution.LayoutMap`.

    Raises:
        ValueError: if the mesh has no such axis, or a variable of the policy is not covered; the message names it.

    Example:

    ```python
    load = functools.partial(keras_hub.models.CausalLM.from_preset, "gemma2_9b_en", dtype="bfloat16")
    mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"))
    layouts = keras_bond.scale.layout_map(keras_bond.scale.abstract(lambda: load(load_weights=False)), mesh)
    keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch"))
    policy = load()  # each chip holds its part
    ```
    """
    if not isinstance(mesh, keras.distribution.DeviceMesh):
        raise ValueError(f"`mesh` must be a `keras.distribution.DeviceMesh`. Received: mesh={mesh!r}")
    if model_axis not in mesh.axis_names:
        raise ValueError(
            f"`model_axis` must name an axis of the mesh, one of {list(mesh.axis_names)}. "
            f"Received: model_axis={model_axis!r}"
        )
    backbone = getattr(policy, "backbone", policy)
    chips = mesh.shape[mesh.axis_names.index(model_axis)]
    rules: dict[str, tuple] = {}
    for pattern, preferred in _KERNELS:
        shapes = {tuple(v.shape) for v in backbone.variables if re.fullmatch(pattern, v.path)}
        if shapes:
            spec = _split(shapes, preferred, chips, model_axis)
            parent, name = pattern.rsplit("/", 1)
            rules |= {
                pattern: spec,
                f"{parent}/lora_{name}_a": (*spec[:-1], None),
                f"{parent}/lora_{name}_b": (None, spec[-1]),
            }
    rules |= dict.fromkeys(_WHOLE, (None,))
    for variable in backbone.variables:
        if not any(re.fullmatch(pattern, variable.path) for pattern in rules):
            raise ValueError(
                f"`layout_map` has no rule for the variable `{variable.path}` of shape {tuple(variable.shape)}, which would "
                "be whole on every chip. Expected the variables of a Gemma, Gemma 2 or Gemma 3 text model, with LoRA or "
                "without, not quantized. Add your own rule to a `keras.distribution.LayoutMap`."
            )
    layouts = keras.distribution.LayoutMap(mesh)
    for pattern, spec in rules.items():
        layouts[pattern] = spec
    return layouts


def _split(shapes, preferred, chips, model_axis):
    """The axes' names for variables of these shapes: the first preferred axis that `chips` divides in all of them."""
    (rank,) = {len(shape) for shape in shapes}
    axis = next((a for a in preferred if all(shape[a] % chips == 0 for shape in shapes)), None)
    return tuple(model_axis if a == axis else None for a in range(rank))
