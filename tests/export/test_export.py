"""Exported folders, as `transformers` and `peft` read them: our logits, our greedy text."""

import json
import pathlib

import keras
import keras_hub
import numpy as np
import peft
import pytest
import tiny
import torch
import transformers
from keras import ops
from sentencepiece import sentencepiece_model_pb2
from tokenizers.pre_tokenizers import ByteLevel

from keras_bond import export
from keras_bond.data import encode

pytestmark = pytest.mark.any_backend

IDS = [[2, 4, 5, 6, 5, 4, 4, 6, 5, 6]]
SIZES = {"num_layers": 2, "num_query_heads": 4, "num_key_value_heads": 2, "hidden_dim": 16, "intermediate_dim": 24}


def llama_like(kind, lora=None, tie=False):
    models = keras_hub.models
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    special += ["<|start_header_id|>", "<|end_header_id|>"]
    pieces = {piece: i for i, piece in enumerate([*sorted(ByteLevel.alphabet()), "we", *special])}
    made = {
        "llama3": (models.Llama3Backbone, models.Llama3Tokenizer, models.Llama3CausalLMPreprocessor, models.Llama3CausalLM),
        "qwen2.5": (models.QwenBackbone, models.QwenTokenizer, models.QwenCausalLMPreprocessor, models.QwenCausalLM),
        "qwen3": (models.Qwen3Backbone, models.Qwen3Tokenizer, models.Qwen3CausalLMPreprocessor, models.Qwen3CausalLM),
        "mistral": (models.MistralBackbone, None, models.MistralCausalLMPreprocessor, models.MistralCausalLM),
    }
    backbone_class, tokenizer_class, preprocessor_class, model_class = made[kind]
    config = {} if kind == "mistral" else {"tie_word_embeddings": tie}
    config |= {"sliding_window": 4} if kind == "mistral" else {}
    config |= {"head_dim": 8, "sliding_window_size": None, "layer_norm_epsilon": 1e-5} if kind == "qwen3" else {}
    if kind == "llama3":
        config |= {"rope_frequency_adjustment_factor": 8.0, "rope_low_freq_factor": 1.0, "rope_high_freq_factor": 4.0}
        config |= {"rope_pretraining_sequence_length": 8192}
    if tokenizer_class is None:
        tokenizer = models.MistralTokenizer(proto=respelt(tiny.tokenizer_proto()))
    else:
        tokenizer = tokenizer_class(vocabulary=pieces, merges=["w e"])
    keras.utils.set_random_seed(0)
    backbone = backbone_class(vocabulary_size=tokenizer.vocabulary_size(), **SIZES, **config)
    model = model_class(backbone=backbone, preprocessor=preprocessor_class(tokenizer, sequence_length=16))
    if lora:
        backbone.enable_lora(lora)
    tiny.perturb(model, np.random.default_rng(0), 0.3)
    return model


def respelt(proto):
    """A tiny vocabulary with Mistral's spelling of its special tokens."""
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(proto)
    for piece in model.pieces:
        piece.piece = {"<bos>": "<s>", "<eos>": "</s>"}.get(piece.piece, piece.piece)
    return model.SerializeToString()


MODELS = {
    "gemma": lambda lora=None: tiny.causal_lm(num_query_heads=4, num_key_value_heads=2, hidden_dim=16, lora=lora),
    "gemma2": lambda lora=None: tiny.causal_lm("gemma2", num_query_heads=4, num_key_value_heads=2, hidden_dim=16, lora=lora),
    "gemma3": lambda lora=None: tiny.causal_lm("gemma3", num_query_heads=4, num_key_value_heads=2, hidden_dim=16, lora=lora),
    **{kind: lambda lora=None, kind=kind: llama_like(kind, lora) for kind in ("llama3", "qwen2.5", "qwen3", "mistral")},
}


def our_logits(policy, ids):
    ids = np.array(ids, "int32")
    hidden = policy.backbone({"token_ids": ids, "padding_mask": np.ones_like(ids)})
    return ops.convert_to_numpy(policy.backbone.token_embedding(hidden, reverse=True)).astype("float64")


def their_logits(model, ids):
    with torch.no_grad():
        return np.array(model(torch.tensor(ids)).logits.tolist())


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-4 * max(1.0, np.abs(expected).max()))


@pytest.mark.parametrize("kind", MODELS)
def test_transformers_and_peft_have_our_logits(kind, tmp_path):
    policy = MODELS[kind](lora=2)
    expected = our_logits(policy, IDS)
    export.to_peft(policy, tmp_path / "adapter", base="base")
    export.to_transformers(policy, tmp_path / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "merged"), dtype="float32")
    assert their_logits(merged, IDS).shape == expected.shape
    close(their_logits(merged, IDS), expected)

    for layer in policy._flatten_layers():
        if getattr(layer, "lora_enabled", False):
            layer.lora_kernel_b.assign(np.zeros(layer.lora_kernel_b.shape, "float32"))
            if layer.bias is not None:
                layer.bias.assign(np.ones(layer.bias.shape, "float32"))
    export.to_transformers(policy, tmp_path / "base", max_shard_size=2000)
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    base = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "base"), dtype="float32")
    close(their_logits(base, IDS), our_logits(policy, IDS))
    assert np.abs(their_logits(base, IDS) - expected).max() > 1e-2
    adapted = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    close(their_logits(adapted, IDS), expected)


@pytest.mark.parametrize("kind", ["gemma", "llama3", "qwen3", "mistral"])
def test_the_tokenizer_goes_along(kind, tmp_path):
    policy = MODELS[kind]()
    export.to_transformers(policy, tmp_path / "out", chat_template="chatml")
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    text = "ab cab" if kind in ("gemma", "mistral") else "we will<|im_end|> be 1"
    start = policy.preprocessor.tokenizer.start_token_id
    (ids,) = encode(policy.preprocessor.tokenizer, [text], ["<|im_end|>"])
    assert theirs(text)["input_ids"] == ids
    assert (start is None) or ids[0] == start
    assert theirs.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False).startswith("<|im_start|>user\nab")


def test_what_cannot_be_exported_is_refused_before_anything_is_written(tmp_path):
    policy = tiny.causal_lm()
    folder = tmp_path / "out"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    phi = keras_hub.models.GPT2Backbone(50, 1, 2, 8, 16, max_sequence_length=8)
    refused = [
        (lambda: export.to_peft(policy, folder), "`policy` has no LoRA: call `policy.backbone.enable_lora"),
        (lambda: export.to_transformers(policy, folder, dtype="int8"), "Received: dtype='int8'"),
        (lambda: export.to_transformers(policy, folder, chat_template="gemma7"), "Received: chat_template='gemma7'"),
        (lambda: export.to_transformers(policy.backbone, folder), "`policy` must be a KerasHub `CausalLM`"),
        (lambda: export.to_transformers(policy, tmp_path / "full"), "`folder` must not exist yet, or be empty"),
        (lambda: export.folders.layout(phi), "Received: GPT2Backbone"),
        (lambda: export.to_transformers(tiny.causal_lm(use_post_ffw_norm=True), folder), "one of the two norms"),
    ]
    for call, message in refused:
        with pytest.raises(ValueError, match=message):
            call()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
    policy.backbone.enable_lora(2)
    policy.backbone.layer_norm.trainable = True
    with pytest.raises(ValueError, match="more than that is trainable"):
        export.to_peft(policy, folder)


OTHERS = [
    ("gemma", "use_sliding_window_attention", True, "a sliding window and no norm after a block"),
    ("gemma", "final_logit_soft_cap", 3.0, "a cap on logits and no norm after a block"),
    ("gemma3", "vision_encoder", object(), "a vision encoder"),
    ("gemma3", "use_bidirectional_attention", True, "attention in both directions"),
    ("gemma3", "use_query_key_norm", False, "no norm of queries and keys"),
    ("gemma3", "use_post_ffw_norm", False, "no norms after its blocks"),
    ("llama3", "rope_position_scaling_factor", 2.0, "positions that are scaled"),
    ("qwen2.5", "use_sliding_window_attention", True, "a sliding window"),
    ("qwen3", "sliding_window_size", 4, "a sliding window"),
]


@pytest.mark.parametrize(("kind", "setting", "value", "message"), OTHERS)
def test_a_model_that_has_no_counterpart_is_refused(kind, setting, value, message):
    backbone = MODELS[kind]().backbone
    object.__setattr__(backbone, setting, value)
    with pytest.raises(ValueError, match=f"^`transformers` has no model of this family with {message}: it cannot"):
        export.folders.layout(backbone)


def test_layers_tokenizers_and_packages_that_do_not_allow_an_export_are_named(tmp_path, monkeypatch):
    policy, folder = tiny.causal_lm(), tmp_path / "out"

    def refused(message, call=export.to_transformers, error=ValueError, **settings):
        with pytest.raises(error, match=message):
            call(policy, folder, **settings)
        assert not folder.exists()

    refused(r"`max_shard_size` must be an integer of at least 1\. Received: max_shard_size=0", max_shard_size=0)
    with monkeypatch.context() as patch:
        patch.delitem(export.tokenizers.CLASSES, "GemmaTokenizer")
        refused("^Models with these tokenizers can be exported: .*Received: GemmaTokenizer$")
    with monkeypatch.context() as patch:
        patch.setattr(policy.backbone.layer_norm, "epsilon", 1e-3)
        refused("has no model of this family with norms of several epsilons")
    policy.backbone.token_embedding.enable_lora(2)
    refused("^LoRA of an embedding is not exported as an adapter: `to_transformers` merges it", call=export.to_peft)
    policy.backbone.transformer_layers[0].attention.query_dense.quantize("int8")
    refused(r"^A quantized model cannot be exported.* Received: model\.layers\.0\.self_attn\.q_proj with int8$")
    policy.preprocessor = None
    refused("^`policy` must be a KerasHub `CausalLM` with its preprocessor, or a trainer")


def test_bfloat16_and_the_generation_config(tmp_path):
    policy = tiny.causal_lm()
    export.to_transformers(policy, tmp_path / "out", dtype="bfloat16")
    model = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "out"))
    assert model.dtype == torch.bfloat16
    written = json.loads(pathlib.Path(tmp_path, "out", "generation_config.json").read_text())
    assert written == {"bos_token_id": 2, "eos_token_id": [1], "pad_token_id": 0}
    assert (tmp_path / "out" / "chat_template.jinja").read_text().startswith("{#- Gemma 1, 2 and 3")
