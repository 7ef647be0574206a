"""Folders that `transformers` and `peft` load."""

import contextlib
import json
import os
import pathlib
import shutil

import numpy as np
from safetensors.numpy import save_file

from keras_bond import presets
from keras_bond._checks import check_at_least
from keras_bond.data import chat
from keras_bond.export.kernels import factors, size, weights
from keras_bond.export.layouts import layout
from keras_bond.export.tokenizers import check_tokenizer, tokenizer_files

DTYPES = ("float32", "bfloat16", "float16")


def to_transformers(policy, folder, *, dtype="float32", chat_template="auto", max_shard_size=5_000_000_000):
    """Write a policy as a checkpoint that `transformers`, vLLM and others load, with LoRA merged.

        W + (alpha / rank) A B,   in float32, then in `dtype`

    It holds `config.json`, `generation_config.json`, the weights (`model.safetensors`, or shards with an index), the
    tokenizer, and the chat template where there is one. The folder appears when it is whole.

    Args:
        policy: a KerasHub `CausalLM` with a Gemma, Gemma 2, Gemma 3 (text), Llama 3, Mistral, Qwen 2.5 or Qwen 3 backbone;
            or a trainer, whose policy is meant. It is not changed.
        folder: a path where nothing is yet, or an empty folder.
        dtype: of the file: `"float32"`, which loses nothing, `"bfloat16"` or `"float16"`.
        chat_template: `None`; `"auto"`, that which a trainer has trained with, else of the preset's folder or of the family;
            or what `data.chat.template` takes.
        max_shard_size: bytes a file of weights, about: so much memory is needed besides the model.

    Raises:
        ValueError: if the model has no counterpart, or an argument is wrong; nothing is written then.

    Example:

    >>> import tempfile
    >>> policy = presets.load("tiny_gemma")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_transformers(policy, folder)
    ...     sorted(os.listdir(folder))[2:5]
    ['generation_config.json', 'model.safetensors', 'tokenizer.model']

    Source: the format is that of `save_pretrained` in Hugging Face's `transformers`.
    """
    if chat_template == "auto":
        chat_template = getattr(getattr(policy, "rollout", None), "chat", None) or chat_template
    policy = _policy(policy)
    config, parts = layout(policy.backbone)
    max_shard_size = check_at_least(1, max_shard_size=max_shard_size)
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}. Received: dtype={dtype!r}")
    tokenizer = policy.preprocessor.tokenizer
    check_tokenizer(tokenizer)
    template = chat.template_of(policy, chat_template, presets.origin(policy))
    tokens = _tokens(tokenizer)
    config |= {**tokens, "dtype": dtype, "torch_dtype": dtype}
    generation = {**tokens, "eos_token_id": chat.turn_ends(tokenizer)}
    with _new_folder(folder) as inside:
        for name, values in (("config.json", config), ("generation_config.json", generation)):
            (inside / name).write_text(json.dumps(values, indent=2))
        for name, content in tokenizer_files(tokenizer, template).items():
            (inside / name).write_bytes(content)
        _write_weights(inside, parts, dtype, max_shard_size)


def to_peft(policy, folder, base=None):
    """Write a policy's LoRA alone, as an adapter that `peft` puts on the unaligned model.

    Args:
        policy: as in `to_transformers`, with LoRA, and nothing but LoRA trained (and biases beside it).
        folder: a path where nothing is yet, or an empty folder.
        base: str, the name or folder of the unaligned model there, for `adapter_config.json`.

    Raises:
        ValueError: if there is no LoRA, more than LoRA is trained, or LoRA is on an embedding; nothing is written.

    Example:

    >>> import tempfile
    >>> policy = presets.load("tiny_gemma")
    >>> policy.backbone.enable_lora(2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     to_peft(policy, folder)
    ...     sorted(os.listdir(folder))
    ['adapter_config.json', 'adapter_model.safetensors']

    Source: LoRA, arXiv 2106.09685; the format is that of Hugging Face's `peft`.
    """
    policy = _policy(policy)
    _, parts = layout(policy.backbone)
    tuned = [part for part in parts if getattr(part.layer, "lora_enabled", False)]
    if not tuned:
        raise ValueError(
            "`policy` has no LoRA: call `policy.backbone.enable_lora(rank)` before training, or export all of it with "
            "`to_transformers`."
        )
    if any(part.kind != "dense" for part in tuned):
        raise ValueError("LoRA of an embedding is not exported as an adapter: `to_transformers` merges it.")
    biases = [part for part in tuned if part.layer.bias is not None and part.layer.bias.trainable]  # as Keras leaves them
    ours = {id(v) for part in tuned for v in (part.layer.lora_kernel_a, part.layer.lora_kernel_b)}
    ours |= {id(part.layer.bias) for part in biases}
    more = [v.path for v in policy.trainable_variables if id(v) not in ours]
    if more:
        raise ValueError(
            "An adapter holds LoRA alone, and more than that is trainable: export with `to_transformers`. "
            f"Received: {len(more)} trainable weights without LoRA, such as {more[0]}"
        )
    arrays, ranks, alphas = {}, {}, {}
    for part in tuned:
        a, b, scaling = factors(part.layer)
        arrays[f"base_model.model.{part.module}.lora_A.weight"] = np.ascontiguousarray(a)
        arrays[f"base_model.model.{part.module}.lora_B.weight"] = np.ascontiguousarray(b)
        ranks[part.module], alphas[part.module] = len(a), scaling * len(a)
    for part in biases:
        bias = dict(weights(part))[f"{part.module}.bias"]()
        arrays[f"base_model.model.{part.module}.base_layer.bias"] = bias
    first = tuned[0].module
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": ranks[first],
        "lora_alpha": alphas[first],
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "target_modules": [*ranks],
        "lora_dropout": 0.0,
        "bias": "lora_only" if biases else "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    with _new_folder(folder) as inside:
        (inside / "adapter_config.json").write_text(json.dumps(config, indent=2))
        save_file(arrays, str(inside / "adapter_model.safetensors"), metadata={"format": "pt"})


def _policy(policy):
    policy = getattr(policy, "policy", policy)
    if not hasattr(policy, "backbone") or getattr(policy, "preprocessor", None) is None:
        raise ValueError(
            f"`policy` must be a KerasHub `CausalLM` with its preprocessor, or a trainer. Received: {type(policy).__name__}"
        )
    return policy


def _tokens(tokenizer):
    ids = {"bos_token_id": "start", "eos_token_id": "end", "pad_token_id": "pad"}
    return {key: getattr(tokenizer, f"{ours}_token_id", None) for key, ours in ids.items()}


def _write_weights(folder, parts, dtype, max_shard_size):
    import ml_dtypes  # NumPy's bfloat16, which Keras has too

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    shards: list[list] = [[]]
    filled = 0
    for part in parts:
        needed = size(part) * kind.itemsize
        if shards[-1] and filled + needed > max_shard_size:
            shards.append([])
            filled = 0
        shards[-1].append(part)
        filled += needed
    places: dict[str, str] = {}
    total = 0
    for i, shard in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{i:05}-of-{len(shards):05}.safetensors"
        arrays = {name: make().astype(kind) for part in shard for name, make in weights(part)}
        arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        save_file(arrays, str(folder / file), metadata={"format": "pt"})
        places |= dict.fromkeys(arrays, file)
        total += sum(array.nbytes for array in arrays.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


@contextlib.contextmanager
def _new_folder(folder):
    """A folder beside `folder` to write to, which takes its place in the end."""
    folder = pathlib.Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"`folder` must not exist yet, or be empty. Received: {str(folder)!r}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    inside = folder.with_name(f".{folder.name}.{os.getpid()}")
    inside.mkdir()
    try:
        yield inside
        if folder.exists():
            folder.rmdir()
        inside.rename(folder)
    except BaseException:
        shutil.rmtree(inside, ignore_errors=True)
        raise
