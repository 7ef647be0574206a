"""A KerasHub tokenizer as the files that `transformers` loads one from."""

import base64
import json

from keras_hub import tokenizers

from keras_bond.data import chat, token_id

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Llama 3 and Qwen split a text into words; `%s` is how they split digits."""

CLASSES = {
    "GemmaTokenizer": "GemmaTokenizer",
    "Gemma3Tokenizer": "GemmaTokenizer",
    "MistralTokenizer": "LlamaTokenizer",
    "Llama3Tokenizer": "PreTrainedTokenizerFast",
    "QwenTokenizer": "PreTrainedTokenizerFast",
    "Qwen3Tokenizer": "PreTrainedTokenizerFast",
}
"""KerasHub's tokenizer -> the class there."""

DIGITS = {"Llama3Tokenizer": r"\p{N}{1,3}"}


def check_tokenizer(tokenizer):
    """Raises ValueError if there are no files for a tokenizer of this kind."""
    if type(tokenizer).__name__ not in CLASSES:
        raise ValueError(
            f"Models with these tokenizers can be exported: {', '.join(CLASSES)}. Received: {type(tokenizer).__name__}"
        )


def tokenizer_files(tokenizer, template=None):
    """Name -> bytes of the files for a tokenizer and a `ChatTemplate`."""
    special = {
        key: getattr(tokenizer, f"{ours}_token", None) for key, ours in (("bos", "start"), ("eos", "end"), ("pad", "pad"))
    }
    config = {f"{key}_token": token for key, token in special.items() if token is not None}
    config |= {"tokenizer_class": CLASSES[type(tokenizer).__name__], "clean_up_tokenization_spaces": False}
    files = {}
    if isinstance(tokenizer, tokenizers.SentencePieceTokenizer):
        proto = tokenizer.proto
        files["tokenizer.model"] = base64.b64decode(proto) if isinstance(proto, str) else bytes(proto)
        config |= {"unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False}
        config["added_tokens_decoder"] = {str(added["id"]): _without_id(added) for added in _added(tokenizer)}
    else:
        files["tokenizer.json"] = _json(_byte_pairs(tokenizer))
    if template is not None:
        files["chat_template.jinja"] = template.source.encode()
    return {**files, "tokenizer_config.json": _json(config)}


def _byte_pairs(tokenizer):
    """What `tokenizers` saves of a byte-level BPE."""
    pattern = WORDS % DIGITS.get(type(tokenizer).__name__, r"\p{N}")
    in_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    start, single = getattr(tokenizer, "start_token", None), [{"Sequence": {"id": "A", "type_id": 0}}]
    begin = None
    if start is not None:
        number = {"id": start, "ids": [tokenizer.start_token_id], "tokens": [start]}
        first = {"SpecialToken": {"id": start, "type_id": 0}}
        pair = [first, *single, {"Sequence": {"id": "B", "type_id": 1}}]
        begin = {"type": "TemplateProcessing", "single": [first, *single], "pair": pair, "special_tokens": {start: number}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(tokenizer),
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, in_bytes]},
        "post_processor": begin,
        "decoder": in_bytes,
        "model": {
            "type": "BPE",
            "vocab": dict(tokenizer.vocabulary),
            "merges": [merge.split(" ") for merge in tokenizer.merges],
        },
    }


def _added(tokenizer):
    """The special tokens and the markers of turns that the vocabulary has."""
    markers = {"<start_of_turn>", "<|im_start|>", "<|start_header_id|>", "<|end_header_id|>", *chat.TURN_ENDS}
    found = {token: token_id(tokenizer, token) for token in {*tokenizer.special_tokens, "<unk>", *markers}}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    pairs = sorted((number, token) for token, number in found.items() if number is not None)
    return [{"id": number, "content": token, **plain} for number, token in pairs]


def _without_id(added):
    return {key: value for key, value in added.items() if key != "id"}


def _json(value):
    return json.dumps(value, ensure_ascii=False, indent=1).encode()
