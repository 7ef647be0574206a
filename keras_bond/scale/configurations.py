"""Real models by name: their sizes are known here, so that no download is needed to ask what one would cost."""

import pathlib

import keras_hub

from keras_bond import presets

_NORMS = {"use_post_ffw_norm": True, "use_post_attention_norm": True, "use_sliding_window_attention": True}
_GEMMA2 = {**_NORMS, "final_logit_soft_cap": 30.0, "attention_logit_soft_cap": 50.0, "sliding_window_size": 4096}
_GEMMA3 = {**_NORMS, "use_query_key_norm": True, "vision_encoder": None, "image_size": 896}


def _sizes(vocabulary_size, num_layers, num_query_heads, num_key_value_heads, hidden_dim, intermediate_dim, **more):
    return {
        "vocabulary_size": vocabulary_size,
        "num_layers": num_layers,
        "num_query_heads": num_query_heads,
        "num_key_value_heads": num_key_value_heads,
        "hidden_dim": hidden_dim,
        "intermediate_dim": intermediate_dim,
        "head_dim": 256,
        **more,
    }


CONFIGURATIONS = {
    "gemma_2b": ("Gemma", _sizes(256000, 18, 8, 1, 2048, 32768)),
    "gemma_7b": ("Gemma", _sizes(256000, 28, 16, 16, 3072, 49152)),
    "gemma2_2b": ("Gemma", _sizes(256000, 26, 8, 4, 2304, 18432, **_GEMMA2)),
    "gemma2_9b": ("Gemma", _sizes(256000, 42, 16, 8, 3584, 28672, **_GEMMA2)),
    "gemma3_1b": ("Gemma3", _sizes(262144, 26, 4, 1, 1152, 6912, sliding_window_size=512, **_GEMMA3)),
    "gemma3_4b": (
        "Gemma3",
        _sizes(262144, 34, 8, 4, 2560, 10240, sliding_window_size=1024, global_rope_scaling_factor=8.0, **_GEMMA3),
    ),
}


def make_policy(name, dtype="bfloat16", lora_rank=None, **overrides):
    """A `CausalLM` with a real model's sizes and random weights; inside `keras_bond.scale.abstract` it takes no memory.

    Args:
        name: a key of `CONFIGURATIONS`, a bundled preset, or what `keras_hub.models.CausalLM.from_preset` takes. Of those
            in `CONFIGURATIONS` the sizes are real and the tokenizer is the bundled one.
        dtype: of the variables and of the computation.
        lora_rank: of LoRA on KerasHub's default layers; `None` for full fine-tuning.
        **overrides: sizes in place of the configuration's own, such as `num_layers`.
    """
    if name in CONFIGURATIONS:
        kind, config = CONFIGURATIONS[name]
        proto = str(pathlib.Path(presets.path("tiny_gemma"), "assets", "tokenizer", "vocabulary.spm"))
        models = {part: getattr(keras_hub.models, kind + part) for part in ("Tokenizer", "Backbone", "CausalLM")}
        tokenizer = models["Tokenizer"](proto=proto, **({"has_vision_tokens": False} if kind == "Gemma3" else {}))
        preprocessor = getattr(keras_hub.models, f"{kind}CausalLMPreprocessor")(tokenizer)
        policy = models["CausalLM"](
            backbone=models["Backbone"](**(config | overrides), dtype=dtype), preprocessor=preprocessor
        )
    else:
        preset = presets.path(name) if name in presets.names() else name
        policy = keras_hub.models.CausalLM.from_preset(preset, load_weights=False, dtype=dtype, **overrides)
    if lora_rank:
        policy.backbone.enable_lora(lora_rank)
    return policy
