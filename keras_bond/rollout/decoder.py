"""The decoders of Gemma, Gemma 2 and Gemma 3 on a few columns at a time, each layer with a cache of keys and values."""

import keras
from keras import ops
from keras_hub import models


def new_cache(backbone, shape, dtype):
    """Per layer a pair of zeros, keys and values, (B, S, heads, dim) each, for `shape` (B, S)."""
    shape = (*shape, backbone.num_key_value_heads, backbone.head_dim)
    return [(ops.zeros(shape, dtype), ops.zeros(shape, dtype)) for _ in backbone.transformer_layers]


def decode(backbone, token_ids, cache, index, mask):
    """Hidden states (B, q, D) of `token_ids` (B, q), which stand in columns index, index + 1, ..., and the updated cache.

    `mask` (B, S) is 1 in the columns that hold tokens.
    """
    run = next(layer for kind, layer in LAYERS.items() if isinstance(backbone, kind))
    x = backbone.token_embedding(token_ids)
    x = x * ops.cast(ops.sqrt(backbone.hidden_dim), x.dtype)
    updated = []
    for layer, layer_cache in zip(backbone.transformer_layers, cache, strict=True):
        x, layer_cache = run(layer, x, layer_cache, index, mask)
        updated.append(layer_cache)
    return backbone.layer_norm(x), updated


def write_columns(array, index, values):
    """`array` (B, S, ...) with `values` (B, q, ...) in columns index, index + 1, ...; on Torch in place.

    Compilers see that the old array is not needed any more. Keras' update on Torch copies all of it.
    """
    if keras.config.backend() == "torch":
        return array.index_copy_(1, index + ops.arange(values.shape[1], dtype="int64"), values)
    return ops.slice_update(array, (0, index, *[0] * (len(array.shape) - 2)), values)


def _gemma(layer, x, cache, index, mask):
    """KerasHub's Gemma layer holds keys and values in one tensor, and copies all of it at every token."""
    attention, (keys, values) = layer.attention, cache
    columns = index + ops.arange(x.shape[1], dtype="int32")
    seen = ops.expand_dims(columns, 1) >= ops.arange(keys.shape[1], dtype="int32")
    seen = ops.logical_and(seen, ops.expand_dims(ops.cast(mask, "bool"), 1))

    h = layer.pre_attention_norm(x)
    query = attention._apply_rope(attention.query_dense(h), index)
    keys = write_columns(keys, index, attention._apply_rope(attention.key_dense(h), index))
    values = write_columns(values, index, attention.value_dense(h))
    h = attention.output_dense(attention._compute_attention(query, keys, values, seen, cache_update_index=index))
    x = x + (layer.post_attention_norm(h) if layer.use_post_attention_norm else h)

    h = layer.pre_ffw_norm(x)
    h = keras.activations.gelu(layer.gating_ffw(h), approximate=True) * layer.gating_ffw_2(h)
    h = layer.ffw_linear(h)
    return x + (layer.post_ffw_norm(h) if layer.use_post_ffw_norm else h), (keys, values)


def _gemma3(layer, x, cache, index, mask):
    return layer(x, padding_mask=mask, cache=cache, cache_update_index=index)


LAYERS = {models.GemmaBackbone: _gemma, models.Gemma3Backbone: _gemma3}
"""By the type of a backbone, what runs one of its layers: (layer, x, cache, index, mask) -> (x, cache)."""
