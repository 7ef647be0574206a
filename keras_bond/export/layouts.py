"""What a family's layers are called in a checkpoint of Hugging Face, and the `config.json` that goes with them."""

from typing import Any, NamedTuple

from keras_bond.export.kernels import check_layer


class Part(NamedTuple):
    """A layer of ours, and its module there: `model.layers.0.self_attn.q_proj`."""

    module: str
    layer: Any
    kind: str = "dense"
    """`"dense"`, `"norm"`, `"embedding"`, or `"head"`, the output side of an embedding that is not tied."""


def layout(backbone):
    """(config, parts) of a KerasHub backbone: the dict for `config.json`, and a list of `Part`.

    Raises:
        ValueError: if the family is not known, or the model has something that its counterpart lacks; it says what.
    """
    make = LAYOUTS.get(type(backbone).__name__)
    if make is None:
        raise ValueError(
            f"Models of these backbones can be exported: {', '.join(LAYOUTS)}. Received: {type(backbone).__name__}. "
            "`policy.save_to_preset(folder)` keeps a model of any family for KerasHub."
        )
    config, parts = make(backbone)
    for part in parts:
        check_layer(part.layer, part.module)
    # KerasHub 0.32 gives Qwen 3's norms of queries and keys 1e-5, whatever the model has: the checkpoint has the model's.
    norms = [part for part in parts if part.kind == "norm" and "self_attn" not in part.module]
    epsilons = {_epsilon(part.layer) for part in norms}
    _refuse(norms_of_several_epsilons=len(epsilons) > 1)
    return {**config, "tie_word_embeddings": all(part.kind != "head" for part in parts), "use_cache": True}, parts


def _refuse(**found):
    """Raises ValueError for the first setting that is true; its name, with spaces, says what the counterpart lacks."""
    for what, holds in found.items():
        if holds:
            raise ValueError(
                f"`transformers` has no model of this family with {what.replace('_', ' ')}: it cannot be exported."
            )


def _gemma(backbone):
    second = backbone.use_post_ffw_norm or backbone.use_post_attention_norm
    per_head = backbone.hidden_dim // backbone.num_query_heads
    scale = backbone.head_dim if backbone.query_head_dim_normalize else per_head
    _refuse(
        one_of_the_two_norms_after_a_block_alone=second
        and not (backbone.use_post_ffw_norm and backbone.use_post_attention_norm),
        a_cap_on_logits_and_no_norm_after_a_block=not second
        and (backbone.final_logit_soft_cap or backbone.attention_logit_soft_cap),
        a_sliding_window_and_no_norm_after_a_block=not second and backbone.use_sliding_window_attention,
        queries_that_are_not_scaled_by_the_size_of_a_head=not second and scale != backbone.head_dim,
    )
    config = {
        **_sizes(backbone, "gemma2" if second else "gemma", backbone.intermediate_dim // 2, 8192),
        **_rope(10_000.0),
        "architectures": ["Gemma2ForCausalLM" if second else "GemmaForCausalLM"],
        "head_dim": backbone.head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
    }
    if second:
        windows = [backbone.use_sliding_window_attention and i % 2 == 0 for i in range(backbone.num_layers)]
        config |= _windows(windows, backbone.sliding_window_size) | {
            "query_pre_attn_scalar": scale,
            "attn_logit_softcapping": backbone.attention_logit_soft_cap,
            "final_logit_softcapping": backbone.final_logit_soft_cap,
        }
    return config, _gemma_parts(backbone, second)


def _gemma3(backbone):
    _refuse(
        a_vision_encoder=backbone.vision_encoder is not None,
        attention_in_both_directions=backbone.use_bidirectional_attention,
        no_norm_of_queries_and_keys=not backbone.use_query_key_norm,
        no_norms_after_its_blocks=not (backbone.use_post_ffw_norm and backbone.use_post_attention_norm),
    )
    ropes = {
        "sliding_attention": {**_rope(10_000.0)["rope_parameters"], "factor": backbone.local_rope_scaling_factor},
        "full_attention": {**_rope(1_000_000.0)["rope_parameters"], "factor": backbone.global_rope_scaling_factor},
    }
    for rope in ropes.values():
        rope |= {"rope_type": "default" if rope["factor"] == 1 else "linear"}
    windows = [backbone.use_sliding_window_attention and i % 6 < 5 for i in range(backbone.num_layers)]
    per_head = backbone.hidden_dim // backbone.num_query_heads
    config = {
        **_sizes(backbone, "gemma3_text", backbone.intermediate_dim, 131072),
        **_windows(windows, backbone.sliding_window_size),
        "architectures": ["Gemma3ForCausalLM"],
        "head_dim": backbone.head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_parameters": ropes,
        "query_pre_attn_scalar": backbone.head_dim if backbone.query_head_dim_normalize else per_head,
        "attn_logit_softcapping": backbone.attention_logit_soft_cap,
        "final_logit_softcapping": backbone.final_logit_soft_cap,
    }
    return config, _gemma_parts(backbone, True)


def _gemma_parts(backbone, second):
    parts = [*_ends(backbone)]
    for i, layer in enumerate(backbone.transformer_layers):
        at, attention = f"model.layers.{i}", layer.attention
        parts += [
            *_attention(at, attention.query_dense, attention.key_dense, attention.value_dense, attention.output_dense),
            *_feedforward(at, layer.gating_ffw, layer.gating_ffw_2, layer.ffw_linear),
            Part(f"{at}.input_layernorm", layer.pre_attention_norm, "norm"),
        ]
        if not second:
            parts.append(Part(f"{at}.post_attention_layernorm", layer.pre_ffw_norm, "norm"))
            continue
        parts += [
            Part(f"{at}.post_attention_layernorm", layer.post_attention_norm, "norm"),
            Part(f"{at}.pre_feedforward_layernorm", layer.pre_ffw_norm, "norm"),
            Part(f"{at}.post_feedforward_layernorm", layer.post_ffw_norm, "norm"),
        ]
        if getattr(attention, "use_query_key_norm", False):
            parts += [Part(f"{at}.self_attn.{x}_norm", getattr(attention, f"{n}_norm"), "norm") for x, n in _QUERY_KEY]
    return parts


def _llama3(backbone):
    _refuse(positions_that_are_scaled=backbone.rope_position_scaling_factor != 1)
    rope: dict[str, Any] = {}
    if backbone.rope_frequency_adjustment_factor is not None:
        rope = {
            "rope_type": "llama3",
            "factor": backbone.rope_frequency_adjustment_factor,
            "low_freq_factor": backbone.rope_low_freq_factor,
            "high_freq_factor": backbone.rope_high_freq_factor,
            "original_max_position_embeddings": backbone.rope_pretraining_sequence_length,
        }
    longest = 131072 if rope else 8192
    config = {"architectures": ["LlamaForCausalLM"], "head_dim": backbone.hidden_dim // backbone.num_query_heads}
    return _like_llama(backbone, "llama", longest, config, **rope)


def _mistral(backbone):
    config = {
        "architectures": ["MistralForCausalLM"],
        "head_dim": backbone.head_dim or backbone.hidden_dim // backbone.num_query_heads,
        "sliding_window": backbone.sliding_window,
    }
    return _like_llama(backbone, "mistral", 32768, config)


def _qwen(backbone):
    _refuse(a_sliding_window=backbone.use_sliding_window_attention)
    config = {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False, "sliding_window": None}
    return _like_llama(backbone, "qwen2", 32768, config)


def _qwen3(backbone):
    _refuse(a_sliding_window=backbone.sliding_window_size is not None)
    config = {"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": False, "sliding_window": None}
    return _like_llama(backbone, "qwen3", 40960, {**config, "head_dim": backbone.head_dim, "attention_bias": False})


def _like_llama(backbone, model_type, longest, config, **rope):
    sizes = _sizes(backbone, model_type, backbone.intermediate_dim, longest)
    parts = [*_ends(backbone)]
    for i, layer in enumerate(backbone.transformer_layers):
        at, attention = f"model.layers.{i}", layer._self_attention_layer
        dense = [getattr(attention, f"_{name}_dense") for name in ("query", "key", "value", "output")]
        feedforward = [getattr(layer, f"_feedforward_{name}_dense") for name in ("gate", "intermediate", "output")]
        parts += [
            *_attention(at, *dense),
            *_feedforward(at, *feedforward),
            Part(f"{at}.input_layernorm", layer._self_attention_layernorm, "norm"),
            Part(f"{at}.post_attention_layernorm", layer._feedforward_layernorm, "norm"),
        ]
        if hasattr(attention, "_query_dense_layer_norm"):
            norms = [(x, getattr(attention, f"_{name}_dense_layer_norm")) for x, name in _QUERY_KEY]
            parts += [Part(f"{at}.self_attn.{x}_norm", norm, "norm") for x, norm in norms]
    return {**sizes, **_rope(float(backbone.rope_max_wavelength), **rope), "hidden_act": "silu", **config}, parts


_QUERY_KEY = (("q", "query"), ("k", "key"))


def _ends(backbone):
    yield Part("model.embed_tokens", backbone.token_embedding, "embedding")
    yield Part("model.norm", backbone.layer_norm, "norm")
    if not backbone.token_embedding.tie_weights:
        yield Part("lm_head", backbone.token_embedding, "head")


def _attention(at, *layers):
    return [Part(f"{at}.self_attn.{name}_proj", layer) for name, layer in zip("qkvo", layers, strict=True)]


def _feedforward(at, *layers):
    return [Part(f"{at}.mlp.{name}_proj", layer) for name, layer in zip(("gate", "up", "down"), layers, strict=True)]


def _sizes(backbone, model_type, intermediate, longest):
    return {
        "model_type": model_type,
        "vocab_size": backbone.vocabulary_size,
        "num_hidden_layers": backbone.num_layers,
        "num_attention_heads": backbone.num_query_heads,
        "num_key_value_heads": backbone.num_key_value_heads,
        "hidden_size": backbone.hidden_dim,
        "intermediate_size": intermediate,
        "max_position_embeddings": longest,
        "rms_norm_eps": _epsilon(backbone.layer_norm),
        "attention_bias": False,
    }


def _epsilon(norm):
    return float(getattr(norm, "epsilon", None) or norm._epsilon)


def _rope(theta, **more):
    return {"rope_theta": theta, "rope_parameters": {"rope_type": "default", "rope_theta": theta, **more}}


def _windows(windows, size):
    kinds = ["sliding_attention" if window else "full_attention" for window in windows]
    return {"layer_types": kinds, "sliding_window": size}


LAYOUTS = {
    "GemmaBackbone": _gemma,
    "Gemma3Backbone": _gemma3,
    "Llama3Backbone": _llama3,
    "MistralBackbone": _mistral,
    "QwenBackbone": _qwen,
    "Qwen3Backbone": _qwen3,
}
"""KerasHub's backbone -> function of one to (config, parts)."""
