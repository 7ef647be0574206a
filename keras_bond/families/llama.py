"""Llama and those that are built alike: RMS norms, rotary positions, a gated feed-forward, shared key-value heads."""

import math
import operator

import keras
from keras import ops
from keras_hub import models

from keras_bond.families.decoder import Decoder, attend, write_columns

_LLAMA = {
    "attention": "_self_attention_layer",
    "norm": "_self_attention_layernorm",
    "query": "_self_attention_layer._query_dense",
    "key": "_self_attention_layer._key_dense",
    "value": "_self_attention_layer._value_dense",
    "output": "_self_attention_layer._output_dense",
    "rope": "_self_attention_layer.rotary_embedding_layer",
    "second_norm": "_feedforward_layernorm",
    "gate": "_feedforward_gate_dense",
    "up": "_feedforward_intermediate_dense",
    "down": "_feedforward_output_dense",
}
"""Where KerasHub's layers keep their parts."""
_NORMED = _LLAMA | {
    "query_norm": "_self_attention_layer._query_dense_layer_norm",
    "key_norm": "_self_attention_layer._key_dense_layer_norm",
}
_PHI = {
    "attention": "attention",
    "norm": "pre_attention_layernorm",
    "query": "attention.query_dense",
    "key": "attention.key_dense",
    "value": "attention.value_dense",
    "output": "attention.output_dense",
    "rope": "attention.rotary_embedding_layer",
    "second_norm": "post_attention_layernorm",
    "gate": "feedforward_gate_dense",
    "up": "feedforward_intermediate_dense",
    "down": "feedforward_output_dense",
}
_SMOLLM = {
    "attention": "self_attn",
    "norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "rope": "self_attn.rotary_embedding",
    "second_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_PARTS = {
    models.LlamaBackbone: _LLAMA,
    models.MistralBackbone: _LLAMA,
    models.QwenBackbone: _LLAMA,
    models.Qwen3Backbone: _NORMED,
    models.Phi3Backbone: _PHI,
    models.SmolLM3Backbone: _SMOLLM,
}


class Llama(Decoder):
    """The decoders of Llama 2 and 3, Mistral, Qwen 2, 2.5 and 3, Phi-3 and SmolLM3.

        x <- x + O attention(rotate(norm(Q h)), rotate(norm(K h)), V h),   h = norm(x)
        x <- x + D (silu(G h) * U h),                                      h = norm(x)

    with biases, norms of queries and keys, and sliding windows where a model has them. Rotary positions are public calls of
    KerasHub's own layers, so a scaled one (Llama 3.1, Phi-3 of long contexts) is theirs.

    Source: KerasHub's decoder layers of these models; the arithmetic is theirs.
    """

    name = "llama"
    backbones = tuple(_PARTS)

    def __init__(self, causal_lm):
        super().__init__(causal_lm)
        self._where = next(where for kind, where in _PARTS.items() if isinstance(self.backbone, kind))
        if getattr(self.backbone, "rope_scaling_type", None):  # beyond, keys of earlier tokens were turned otherwise
            self.longest = self.backbone.pretraining_sequence_length

    def _part(self, layer, name):
        return operator.attrgetter(self._where[name])(layer) if name in self._where else None

    def heads(self):
        backbone = self.backbone
        queries = getattr(backbone, "num_query_heads", None) or backbone.num_attention_heads
        return backbone.num_key_value_heads, getattr(backbone, "head_dim", None) or backbone.hidden_dim // queries

    def finish(self, x):
        return (self.backbone.norm if self._where is _SMOLLM else self.backbone.layer_norm)(x)

    def window(self, layer):
        attention = self._part(layer, "attention")
        if not getattr(attention, "use_sliding_window_attention", True):
            return math.inf
        return getattr(layer, "sliding_window", None) or getattr(attention, "sliding_window_size", None) or math.inf

    def rotation(self, layer, columns):
        attention, rope, size = self._part(layer, "attention"), self._part(layer, "rope"), self.heads()[1]

        def cosines_and_sines():
            """Of features (1, ..., 1, 0, ..., 0) the rotation is the cosines, then the sines."""
            units = ops.cast(ops.arange(size, dtype="int32") < size // 2, self.causal_lm.compute_dtype)
            units = ops.broadcast_to(units, (1, columns.shape[0], 1, size))
            if self._where is _SMOLLM:
                turned = [
                    ops.expand_dims(of_feature, 2)[..., : size // 2] for of_feature in rope(units[:, :, 0], columns[0])
                ]
            else:
                turned = ops.split(rope(units, start_index=columns[0]), 2, axis=-1)
            return tuple(turned)

        return ("turned", cosines_and_sines) if getattr(attention, "use_rope", True) else ("as it is", tuple)

    def run(self, layer, x, cache, index, seen, rotation):
        (keys, values), heads = cache, (*x.shape[:2], -1, self.heads()[1])

        def part(name, x):
            return self._part(layer, name)(x)

        def projected(name, h):
            features = ops.reshape(part(name, h), heads)
            return part(f"{name}_norm", features) if f"{name}_norm" in self._where else features

        h = part("norm", x)
        keys = write_columns(keys, index, _rotate(projected("key", h), rotation))
        values = write_columns(values, index, projected("value", h))
        query = _rotate(projected("query", h), rotation)
        x = x + part("output", attend(query, keys, values, seen, query.shape[-1] ** -0.5, fused=_fused()))

        h = part("second_norm", x)
        gate = keras.activations.silu(ops.cast(part("gate", h), "float32"))
        return x + part("down", part("up", h) * ops.cast(gate, h.dtype)), (keys, values)


def _rotate(x, rotation):
    if not rotation:
        return x
    (first, second), (cosines, sines) = ops.split(x, 2, axis=-1), rotation
    return ops.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=-1)


def _fused():
    """Whether this device has fused attention, as KerasHub's Gemma asks it; on a CPU what is called so is slower."""
    from keras_hub.src.utils import keras_utils as asked

    if not asked.fused_attention_op_available():
        return False
    return asked.gpu_supports_fused_attention_op() if asked.running_on_gpu() else asked.running_on_tpu()
