"""Tiny models of KerasHub's other families; the same weights on every backend."""

import functools

import keras
import keras_hub
import numpy as np
import tiny

models = keras_hub.models
SIZES = {"num_layers": 2, "num_query_heads": 4, "num_key_value_heads": 2, "hidden_dim": 16, "intermediate_dim": 24}
EXPERTS = {"moe_intermediate_dim": 12, "num_experts": 4, "top_k": 2}
SCALED = {
    "rope_frequency_adjustment_factor": 8.0,
    "rope_low_freq_factor": 1.0,
    "rope_high_freq_factor": 4.0,
    "rope_pretraining_sequence_length": 16,
}
SMOLLM3 = {
    "vocabulary_size": 7,
    "hidden_dim": 16,
    "intermediate_dim": 24,
    "num_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_bias": True,
    "attention_dropout": 0.0,
    "rope_layer_enabled_list": [True, False],
    "layer_types": ["full_attention", "full_attention"],
    "mlp_bias": False,
    "layer_norm_epsilon": 1e-6,
    "max_position_embeddings": 64,
    "rope_theta": 1e4,
    "partial_rotary_factor": 1.0,
}
CONFIGS = {
    "llama2": (models.LlamaCausalLM, models.LlamaBackbone, SIZES | {"vocabulary_size": 7}),
    "llama3": (models.Llama3CausalLM, models.Llama3Backbone, SIZES | SCALED | {"vocabulary_size": 7}),
    "mistral": (models.MistralCausalLM, models.MistralBackbone, SIZES | {"vocabulary_size": 7, "sliding_window": 3}),
    "qwen2.5": (models.QwenCausalLM, models.QwenBackbone, SIZES | {"vocabulary_size": 7}),
    "qwen3": (models.Qwen3CausalLM, models.Qwen3Backbone, SIZES | {"vocabulary_size": 7, "head_dim": 6}),
    "phi3": (models.Phi3CausalLM, models.Phi3Backbone, SIZES | {"vocabulary_size": 7}),
    "smollm3": (models.SmolLM3CausalLM, models.SmolLM3Backbone, SMOLLM3),
    "gpt2": (
        models.GPT2CausalLM,
        models.GPT2Backbone,
        {
            "vocabulary_size": 7,
            "num_layers": 2,
            "num_heads": 2,
            "hidden_dim": 8,
            "intermediate_dim": 16,
            "max_sequence_length": 32,
        },
    ),
    "qwen3_moe": (
        models.Qwen3MoeCausalLM,
        models.Qwen3MoeBackbone,
        SIZES | EXPERTS | {"vocabulary_size": 7, "head_dim": 4, "norm_top_k_prob": True},
    ),
}
FAST = ("llama2", "llama3", "mistral", "qwen2.5", "qwen3", "phi3", "smollm3")


def causal_lm(kind, seed=0, scale=0.3, lora=None, dtype="float32", **config):
    """A random policy of two layers with the letters of `tiny`; as the tokenizers do not matter here, it has Gemma's."""
    task, backbone, sizes = CONFIGS[kind]
    named = {} if kind == "smollm3" else {"dtype": dtype}  # which takes the global one
    model = task(backbone=backbone(**(sizes | config), **named), preprocessor=preprocessor())
    tiny.perturb(model, np.random.default_rng(seed), scale)
    if lora:
        model.backbone.enable_lora(lora)
        tiny.perturb(model, np.random.default_rng(seed), scale)
    return model


@functools.cache
def preprocessor():
    tokenizer = models.GemmaTokenizer(proto=tiny.tokenizer_proto())
    return models.GemmaCausalLMPreprocessor(tokenizer=tokenizer, sequence_length=16)


def own_log_probs(model, prompt, completion):
    """log-softmax of the model's own logits at the completion of one row, without any padding: float64."""
    row = np.array([[*prompt, *completion]], "int32")
    logits = keras.ops.convert_to_numpy(model({"token_ids": row, "padding_mask": np.ones_like(row)}))[0].astype("float64")
    log_probs = logits - logits.max(-1, keepdims=True)
    log_probs -= np.log(np.exp(log_probs).sum(-1, keepdims=True))
    return log_probs[len(prompt) - 1 : -1][np.arange(len(completion)), completion]
