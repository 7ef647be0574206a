"""Gemma, Gemma 2 and Gemma 3 (text)."""

import math

import keras
from keras import ops
from keras_hub import models

from keras_bond.families.decoder import Decoder, attend, write_columns


class Gemma(Decoder):
    """The decoders of Gemma 1, 2 and 3: norms before and after, soft caps, sliding windows, scaled embeddings.

    Source: KerasHub's `gemma_decoder_block.py`, `gemma3_decoder_block.py`; the arithmetic is theirs.
    """

    name = "gemma"
    backbones = (models.GemmaBackbone, models.Gemma3Backbone)

    def embed(self, token_ids):
        x = self.backbone.token_embedding(token_ids)
        return x * ops.cast(ops.sqrt(self.backbone.hidden_dim), x.dtype)

    def window(self, layer):
        attention = layer.attention
        return attention.sliding_window_size if attention.use_sliding_window_attention else math.inf

    def rotation(self, layer, columns):
        rope = layer.attention.rope_layer
        of_shape = ops.zeros((1, 1, *self.heads()), self.causal_lm.compute_dtype)
        return (rope.max_wavelength, rope.scaling_factor), lambda: rope._compute_cos_sin_embedding(
            of_shape, positions=columns
        )

    def run(self, layer, x, cache, index, seen, rotation):
        attention, (keys, values) = layer.attention, cache

        def rotate(x):  # KerasHub's Gemma also takes the features of queries and keys to another order, the same for both
            return attention.rope_layer._apply_rotary_pos_emb(x, *rotation)

        h = layer.pre_attention_norm(x)
        query, key = attention.query_dense(h), attention.key_dense(h)
        if getattr(attention, "use_query_key_norm", False):
            query, key = attention.query_norm(query), attention.key_norm(key)
        keys = write_columns(keys, index, rotate(key))
        values = write_columns(values, index, attention.value_dense(h))
        heads, size = query.shape[2:]
        scale = (size if attention.query_head_dim_normalize else attention.hidden_dim // heads) ** -0.5
        fused = attention._use_fused_attention_op()
        h = attention.output_dense(attend(rotate(query), keys, values, seen, scale, attention.logit_soft_cap, fused))
        x = add(x, layer.post_attention_norm(h) if layer.use_post_attention_norm else h)

        h = layer.pre_ffw_norm(x)
        h = keras.activations.gelu(layer.gating_ffw(h), approximate=True) * layer.gating_ffw_2(h)
        h = layer.ffw_linear(h)
        return add(x, layer.post_ffw_norm(h) if layer.use_post_ffw_norm else h), (keys, values)


def add(x, y):
    """x + y; in float16, which Gemma 3 overflows, as near to it as float16 comes."""
    if keras.backend.standardize_dtype(x.dtype) != "float16":
        return x + y
    largest = 65504
    return ops.cast(ops.clip(ops.cast(x, "float32") + ops.cast(y, "float32"), -largest, largest), "float16")
