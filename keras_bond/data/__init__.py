"""Prompts in: what people have them in, their lengths, and the batches of a `fit`."""

from keras_bond.data.feed import Batch, Feed
from keras_bond.data.lengths import Fitting, bucket, pad_left
from keras_bond.data.sources import Table, is_stream

__all__ = ["Batch", "Feed", "Fitting", "Table", "bucket", "is_stream", "pad_left"]
