"""Prompts in: what people have them in, chat templates, tokens and lengths, and the batches of a `fit`."""

from keras_bond.data import chat
from keras_bond.data.chat import ChatTemplate
from keras_bond.data.feed import Batch, Feed
from keras_bond.data.lengths import Fitting, bucket, pad_left
from keras_bond.data.messages import is_conversation
from keras_bond.data.sources import Table, is_stream
from keras_bond.data.tokens import encode, token_id, tokenize

__all__ = [
    "Batch",
    "ChatTemplate",
    "Feed",
    "Fitting",
    "Table",
    "bucket",
    "chat",
    "encode",
    "is_conversation",
    "is_stream",
    "pad_left",
    "token_id",
    "tokenize",
]
