"""The decoders of Gemma, Gemma 2 and Gemma 3 on a few columns at a time, each layer with a cache of keys and values.

KerasHub's own layers copy all of a cache at every token, and on TensorFlow what they write has no gradient.
"""

import functools
import math

import keras
from keras import ops
from keras_hub import models

SUPPORTED = (models.GemmaBackbone, models.Gemma3Backbone)
"""The backbones whose layers `decode` knows."""


def new_cache(backbone, shape, dtype):
    """Per layer a pair of zeros, keys and values, (B, S, heads, dim) each, for `shape` (B, S)."""
    shape = (*shape, backbone.num_key_value_heads, backbone.head_dim)
    return [(ops.zeros(shape, dtype), ops.zeros(shape, dtype)) for _ in backbone.transformer_layers]


def decode(backbone, token_ids, cache, index, mask):
    """Hidden states (B, q, D) of `token_ids` (B, q), which stand in columns index, index + 1, ..., and the updated cache.

    `mask` (B, S) is 1 in the columns that hold tokens. Where `index` is an int, the cache may still lack these columns.
    """
    columns = index + ops.arange(token_ids.shape[1], dtype="int32")
    distance = ops.expand_dims(columns, 1) - ops.arange(mask.shape[1], dtype="int32")
    held = ops.expand_dims(ops.cast(mask, "bool"), 1)
    x = backbone.token_embedding(token_ids)
    x = x * ops.cast(ops.sqrt(backbone.hidden_dim), x.dtype)
    rotations, seen, updated = {}, {}, []
    for layer, layer_cache in zip(backbone.transformer_layers, cache, strict=True):
        attention, rope = layer.attention, layer.attention.rope_layer
        kind = rope.max_wavelength, rope.scaling_factor
        if kind not in rotations:
            rotations[kind] = rope._compute_cos_sin_embedding(layer_cache[0], positions=columns)
        window = min(mask.shape[1], attention.sliding_window_size if attention.use_sliding_window_attention else math.inf)
        if window not in seen:
            within = ops.logical_and(distance >= 0, distance < window)
            seen[window] = ops.logical_and(within, held)
        run = functools.partial(_decode_layer, layer, index=index, seen=seen[window], rotation=rotations[kind])
        x, layer_cache = layer.rematerialized_call(run, x)(x, layer_cache)  # `run` as it is, but for `keras.RematScope`
        updated.append(layer_cache)
    return backbone.layer_norm(x), updated


def write_columns(array, index, values):
    """`array` (B, S, ...) with `values` (B, q, ...) in columns index, index + 1, ...

    Where `index` is an int, the columns may be new ones, next to the last. Where it is a tensor, they are written in place:
    compilers see that the old array is not needed any more; Keras' update on Torch copies all of it.
    """
    if isinstance(index, int):
        return ops.concatenate([array[:, :index], values, array[:, index + values.shape[1] :]], axis=1)
    if keras.config.backend() == "torch":
        return array.index_copy_(1, index + ops.arange(values.shape[1], dtype="int64"), values)
    return ops.slice_update(array, (0, index, *[0] * (len(array.shape) - 2)), values)


def _decode_layer(layer, x, cache, index, seen, rotation):
    attention, (keys, values) = layer.attention, cache

    def rotate(x):  # KerasHub's Gemma also takes the features of queries and keys to another order, the same for both
        return attention.rope_layer._apply_rotary_pos_emb(x, *rotation)

    h = layer.pre_attention_norm(x)
    query, key = attention.query_dense(h), attention.key_dense(h)
    if getattr(attention, "use_query_key_norm", False):
        query, key = attention.query_norm(query), attention.key_norm(key)
    keys = write_columns(keys, index, rotate(key))
    values = write_columns(values, index, attention.value_dense(h))
    h = attention.output_dense(_attend(attention, rotate(query), keys, values, seen))
    x = add(x, layer.post_attention_norm(h) if layer.use_post_attention_norm else h)

    h = layer.pre_ffw_norm(x)
    h = keras.activations.gelu(layer.gating_ffw(h), approximate=True) * layer.gating_ffw_2(h)
    h = layer.ffw_linear(h)
    return add(x, layer.post_ffw_norm(h) if layer.use_post_ffw_norm else h), (keys, values)


def _attend(attention, query, keys, values, seen):
    """softmax(query keys^T / sqrt(d)) values over the columns that are seen: (B, q, n, h).

    As KerasHub's `_compute_attention`, but for the sliding window: there it is a mask of all columns by all columns, which
    every layer makes anew at every token, and of which Torch reads the place on the host.

    Args:
        attention: the layer's attention.
        query: (B, q, n, h).
        keys, values: (B, S, k, h), where k divides n.
        seen: (B, q, S) bool. A query that sees no column has some finite result.
    """
    (rows, length, heads, size), groups = query.shape, keys.shape[2]
    scale = (size if attention.query_head_dim_normalize else attention.hidden_dim // heads) ** -0.5
    cap = attention.logit_soft_cap
    if attention._use_fused_attention_op():
        cap = {} if cap is None else {"attn_logits_soft_cap": cap}
        if length > 1:  # cuDNN has a gradient for even lengths alone; a token that is sampled needs none
            query, keys, values, seen = (_even(array, (1,)) for array in (query, keys, values, _even(seen, (2,))))
        attended = ops.dot_product_attention(query, keys, values, mask=ops.expand_dims(seen, 1), scale=scale, **cap)
        return attended[:, :length]
    query = ops.reshape(query * ops.cast(scale, query.dtype), (rows, length, groups, heads // groups, size))
    logits = ops.einsum("btkgh,bskh->bkgts", query, keys)
    if cap is not None:
        logits = ops.tanh(logits / cap) * cap
    weights = ops.softmax(ops.where(seen[:, None, None], ops.cast(logits, "float32"), -1e9))
    return ops.reshape(ops.einsum("bkgts,bskh->btkgh", ops.cast(weights, values.dtype), values), (rows, length, heads, size))


def _even(array, axes):
    """`array`, with a zero more along each of `axes` that is odd."""
    return ops.pad(array, [(0, array.shape[axis] % 2 if axis in axes else 0) for axis in range(len(array.shape))])


def add(x, y):
    """x + y; in float16, which Gemma 3 overflows, as near to it as float16 comes."""
    if keras.backend.standardize_dtype(x.dtype) != "float16":
        return x + y
    largest = 65504
    return ops.cast(ops.clip(ops.cast(x, "float32") + ops.cast(y, "float32"), -largest, largest), "float16")
