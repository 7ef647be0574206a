"""Tiny policies for tests: every completion can be enumerated, and everything compiles in seconds."""

import functools
import io
import itertools

import keras
import keras_hub
import numpy as np
import pytest
import sentencepiece
from keras import ops

PROMPT = "ab"
ALPHABET = "abc"

ROUNDING = 512 * float(np.finfo("float32").eps)
"""What two ways to the same gradient may differ by, relative to its largest element: a forward and a backward pass are about
30 products of sums of up to 16 summands, and each summand rounds by eps."""


def on_all_backends(these, parameters):
    """The parameters of a test: `these` on every backend, the others, of which the mechanism is the same, on one."""
    return [
        p if p in these else pytest.param(*(p if isinstance(p, tuple) else [p]), marks=pytest.mark.any_backend)
        for p in parameters
    ]


@functools.cache
def tokenizer_proto(alphabet=ALPHABET):
    """A character vocabulary with Gemma's special ids: <pad> <eos> <bos> <unk> and a few letters."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([alphabet, alphabet[::-1]]),
        model_writer=model,
        model_type="char",
        vocab_size=4 + len(alphabet),
        character_coverage=1.0,
        hard_vocab_limit=False,
        add_dummy_prefix=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        minloglevel=2,
    )
    return model.getvalue()


def causal_lm(kind="gemma", seed=0, scale=0.5, dtype="float32", lora=None, alphabet=ALPHABET, **config):
    """A random policy of one or two layers; the same weights on every backend."""
    models = keras_hub.models
    proto = tokenizer_proto(alphabet)
    sizes = {"num_query_heads": 2, "num_key_value_heads": 1, "hidden_dim": 8, "intermediate_dim": 16, "head_dim": 4}
    config = sizes | config
    if kind == "gemma3":
        tokenizer = models.Gemma3Tokenizer(proto=proto, has_vision_tokens=False)
        backbone = models.Gemma3Backbone(
            vocabulary_size=tokenizer.vocabulary_size(),
            image_size=16,
            num_layers=6,
            sliding_window_size=4,
            use_query_key_norm=True,
            use_post_ffw_norm=True,
            use_post_attention_norm=True,
            use_sliding_window_attention=True,
            vision_encoder=None,
            dtype=dtype,
            **config,
        )
        preprocessor = models.Gemma3CausalLMPreprocessor(tokenizer=tokenizer, sequence_length=16)
        model = models.Gemma3CausalLM(preprocessor=preprocessor, backbone=backbone)
    else:
        gemma2 = {
            "use_post_ffw_norm": True,
            "use_post_attention_norm": True,
            "final_logit_soft_cap": 3.0,
            "attention_logit_soft_cap": 2.0,
            "use_sliding_window_attention": True,
            "sliding_window_size": 4,
        }
        tokenizer = models.GemmaTokenizer(proto=proto)
        backbone = models.GemmaBackbone(
            vocabulary_size=tokenizer.vocabulary_size(),
            num_layers=2 if kind == "gemma2" else 1,
            dtype=dtype,
            **config,
            **(gemma2 if kind == "gemma2" else {}),
        )
        preprocessor = models.GemmaCausalLMPreprocessor(tokenizer=tokenizer, sequence_length=16)
        model = models.GemmaCausalLM(backbone, preprocessor)
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(np.zeros(variable.shape, "float32"))
    perturb(model, rng, scale)
    if lora:
        backbone.enable_lora(lora)
        for variable in model.trainable_variables:
            variable.assign(np.zeros(variable.shape, "float32"))
        perturb(model, rng, scale)  # A and B both: so that no gradient vanishes
    return model


def perturb(model, rng, scale):
    """Move the trainable variables at random."""
    for variable in model.trainable_variables:
        value = ops.convert_to_numpy(ops.cast(variable.value, "float32"))
        variable.assign(value + scale * rng.standard_normal(value.shape).astype("float32"))


def completions(vocabulary_size, budget, stops=(1,)):
    """All completions of at most `budget` tokens: (ids, mask), each (N, budget); a stop token ends one."""
    rows = []
    for length in range(1, budget + 1):
        for body in itertools.product([t for t in range(vocabulary_size) if t not in stops], repeat=length - 1):
            last = stops if length < budget else range(vocabulary_size)
            rows += [(*body, t) for t in last]
    ids = np.zeros((len(rows), budget), "int32")
    mask = np.zeros((len(rows), budget), bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, True
    return ids, mask


def letters_reward(prompts, texts):
    """Depends on the text alone, with ties: a's count for, c's against."""
    return [float(text.count("a") - text.count("c")) for text in texts]


def gradients(function, variables):
    """d function() / d variable for each, as arrays, of a scalar function that reads the variables."""
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        def stateless(values):
            with keras.StatelessScope(state_mapping=zip(variables, values, strict=True)):
                return function()

        return [np.asarray(g) for g in jax.jit(jax.grad(stateless))([v.value for v in variables])]
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            result = function()
        return [tf.convert_to_tensor(g).numpy() for g in tape.gradient(result, [v.value for v in variables])]
    for variable in variables:
        variable.value.grad = None
    function().backward()
    return [ops.convert_to_numpy(v.value.grad) for v in variables]
