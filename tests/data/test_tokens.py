"""Special tokens in text, against the tokenizers of `transformers`."""

import io
import re

import pytest
import sentencepiece
import tiny
import transformers
from keras_hub.models import GemmaTokenizer, GPT2Tokenizer, LlamaTokenizer, Qwen3Tokenizer
from sentencepiece import sentencepiece_model_pb2
from tokenizers.pre_tokenizers import ByteLevel

from keras_bond import presets
from keras_bond.data import encode, token_id, tokenize
from keras_bond.rollout import Rollout

TEXTS = [
    "We will",
    "<bos>We will",
    "",
    "<bos>",
    "We<eos>",
    "a<eos> b<pad><pad>c <unk>",
    "<eos><bos>",
    " <bos> We",
    "<bos><bos>We",
    "<eo<eos>s>",
    "<end_of_turn>\n<start_of_turn>user",
    "a < b > c bos>",
    "tab\there\nand\x00 \u2028é漢\U0001f600",
]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """Ours and theirs, from one SentencePiece model, with the pieces of a turn as Gemma has them."""
    folder = tmp_path_factory.mktemp("gemma")
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(presets.load("tiny_gemma").preprocessor.tokenizer.proto)
    for place, piece in ((-1, "<start_of_turn>"), (-2, "<end_of_turn>")):
        model.pieces[place].piece, model.pieces[place].type = piece, model.SentencePiece.USER_DEFINED
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    theirs = transformers.GemmaTokenizer.from_pretrained(str(folder))
    return GemmaTokenizer(proto=model.SerializeToString()), theirs


def test_gemma_tokens_are_those_of_transformers(gemma):
    ours, theirs = gemma
    expected = [theirs(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert tokenize(ours, TEXTS) == expected
    assert encode(ours, TEXTS) == [row if row[:1] == [2] else [2, *row] for row in expected]
    assert all(type(token) is int for row in encode(ours, TEXTS) for token in row)


def test_llama_puts_a_space_after_a_special_token(tmp_path):
    """As SentencePiece does at the start of a text, and Llama 2 was trained."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox", "we will be the one", "he said"]),
        model_writer=model,
        model_type="bpe",
        vocab_size=60,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    theirs = transformers.LlamaTokenizer.from_pretrained(str(tmp_path), legacy=True)
    texts = ["we will", "<s>we will", "we</s><s>the", "", "<unk>we", "</s>"]
    expected = [theirs(text, add_special_tokens=False)["input_ids"] for text in texts]
    ours = LlamaTokenizer(proto=model.getvalue())
    assert tokenize(ours, texts) == expected
    assert [ours.id_to_token(token) for token in expected[2]] == ["▁we", "</s>", "<s>", "▁the"]


@pytest.fixture
def byte_pairs():
    merges = ["w e", "Ġ w", "i l", "il l", "Ġw ill"]
    pieces = [*sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in merges), "<|endoftext|>", "<|im_end|>"]
    return {piece: i for i, piece in enumerate(pieces)}, merges


def test_byte_pairs_are_those_of_transformers(byte_pairs):
    vocabulary, merges = byte_pairs
    ours = GPT2Tokenizer(vocabulary=vocabulary, merges=merges)
    theirs = transformers.GPT2Tokenizer(vocab=vocabulary, merges=[tuple(merge.split()) for merge in merges])
    texts = ["we will", "<|endoftext|>we will<|endoftext|> we", "", "we <unk>", "<|endoftext|>"]  # without an unknown token
    assert tokenize(ours, texts) == [theirs(text)["input_ids"] for text in texts]
    start = vocabulary["<|endoftext|>"]
    assert [row[:2].count(start) for row in encode(ours, texts[:2])] == [1, 1]


def test_a_tokenizer_without_a_start_token_gets_none(byte_pairs):
    ours = Qwen3Tokenizer(*byte_pairs)
    assert ours.start_token_id is None
    assert (
        encode(ours, ["we<|im_end|>"]) == tokenize(ours, ["we<|im_end|>"]) == [[byte_pairs[0]["we"], len(byte_pairs[0]) - 1]]
    )


def test_all_texts_are_one_call_of_the_tokenizer(gemma, monkeypatch):
    calls, call = [], GemmaTokenizer.__call__
    monkeypatch.setattr(GemmaTokenizer, "__call__", lambda *arguments: calls.append(1) or call(*arguments))
    encode(gemma[0], TEXTS)
    assert len(calls) == 1
    assert encode(gemma[0], []) == []
    assert encode(gemma[0], ["", "<eos>"]) == [[2], [2, 1]]
    assert len(calls) == 1


def test_token_id(gemma, byte_pairs):
    assert [token_id(gemma[0], token) for token in ("<bos>", "<unk>", "<end_of_turn>", "no such piece", "")] == [
        2,
        3,
        4094,
        None,
        None,
    ]
    ours = GPT2Tokenizer(*byte_pairs)
    assert [token_id(ours, token) for token in ("we", "<unk>", "")] == [byte_pairs[0]["we"], None, None]


def test_text_that_is_no_unicode_is_named():
    with pytest.raises(ValueError, match=re.escape(r"Received at row 1, character 2: 'ab\ud83d c'")):
        encode(tiny.causal_lm().preprocessor.tokenizer, ["ab", "ab\ud83d c"])


def test_prompts_are_encoded_so():
    policy = tiny.causal_lm()
    rollout = Rollout(policy, 4, 2)
    assert rollout.encode(["<bos>ab", "a<eos>b"]) == [[2, 4, 5], [2, 4, 1, 5]]
    with pytest.raises(ValueError, match=re.escape("Prompt 0 has 5 tokens (start token included), more than")):
        rollout.encode(["<bos>abab"])
