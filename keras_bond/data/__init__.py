"""Prompts on their way in: text to token ids."""

from keras_bond.data.tokens import encode, token_id, tokenize

__all__ = ["encode", "token_id", "tokenize"]
