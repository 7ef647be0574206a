"""Prompts in: what people have them in, their tokens and lengths, and the batches of a `fit`."""

from keras_bond.data.feed import Batch, Feed
from keras_bond.data.lengths import Fitting, bucket, pad_left
from keras_bond.data.sources import Table, is_stream
from keras_bond.data.tokens import encode, token_id, tokenize

__all__ = ["Batch", "Feed", "Fitting", "Table", "bucket", "encode", "is_stream", "pad_left", "token_id", "tokenize"]
