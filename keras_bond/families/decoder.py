"""Decoders of known layers, some columns at a time: each layer with a cache of keys and values, written in place.

KerasHub's own layers copy all of a cache at every token, and on TensorFlow what they write has no gradient.
"""

import functools
import math

import keras
from keras import ops

from keras_bond.families.family import Family, joined_on_the_left, widened


class Decoder(Family):
    """A family that knows the parts of its layers. The completions of a prompt share its pass, forward and backward.

    A subclass says how tokens are embedded (`embed`), what a layer looks at (`window`), how it turns queries and keys
    (`rotation`) and what it computes (`run`).
    """

    def embed(self, token_ids):
        """(R, q, D)."""
        return self.backbone.token_embedding(token_ids)

    def window(self, layer):
        """How many tokens a query of the layer sees, its own included; `math.inf` for all."""
        return math.inf

    def rotation(self, layer, columns):
        """(kind, function without arguments): layers of one kind share what the function returns for these columns (q,)."""
        raise NotImplementedError

    def run(self, layer, x, cache, index, seen, rotation):
        """A layer's output (R, q, D) and its keys and values with those of the columns at `index`: see `decode`."""
        raise NotImplementedError

    def finish(self, x):
        """The last hidden states."""
        return self.backbone.layer_norm(x)

    def heads(self):
        """(heads, size) of keys and values."""
        return self.backbone.num_key_value_heads, self.backbone.head_dim

    def new_cache(self, rows, columns):
        shape, dtype = (rows, columns, *self.heads()), self.causal_lm.compute_dtype
        return [(ops.zeros(shape, dtype), ops.zeros(shape, dtype)) for _ in self.backbone.transformer_layers]

    def widen(self, cache, more):
        for layer, arrays in enumerate(cache):
            cache[layer] = tuple(widened(array, more) for array in arrays)

    def read(self, token_ids, mask):
        cache = self.new_cache(token_ids.shape[0], 0)
        return self.decode(token_ids, cache, 0, mask)[1] if token_ids.shape[1] else cache

    def step(self, token, cache, column, mask):
        hidden, cache = self.decode(ops.expand_dims(token, 1), cache, column, mask)
        return self.logits(hidden)[:, 0], cache

    def hidden(self, prompt_ids, prompt_mask, completion_ids):
        (prompts, width), (rows, length) = prompt_ids.shape, completion_ids.shape
        read = width - 1 if rows > prompts else 0
        of_prompts = prompt_ids[:, read:], prompt_mask, self.read(prompt_ids[:, :read], prompt_mask[:, :read])
        rest, mask, cache = keras.tree.map_structure(lambda array: ops.repeat(array, rows // prompts, axis=0), of_prompts)
        ids = ops.concatenate([rest, completion_ids[:, :-1]], axis=1)
        hidden, _ = self.decode(ids, cache, read, widened(ops.cast(mask, "int32"), length - 1, 1))
        return hidden[:, width - 1 - read :]

    def hidden_by_groups(self, prompts, completions):
        width = max(ids.shape[1] for ids, _ in prompts)
        masks, last = joined_on_the_left([mask for _, mask in prompts]), ops.concatenate([ids[:, -1:] for ids, _ in prompts])
        read = []
        for ids, mask in prompts:  # a short prompt stands in the last columns of the widest
            before = width - ids.shape[1]
            cache = self.new_cache(ids.shape[0], before)
            seen = ops.pad(mask[:, :-1], [(0, 0), (before, 0)])
            read.append(self.decode(ids[:, :-1], cache, before, seen)[1] if ids.shape[1] > 1 else cache)
        cache = keras.tree.map_structure(lambda *of_groups: ops.concatenate(of_groups), *read)
        found = []
        for owner, ids, *_ in completions:
            token, mask, of_prompts = keras.tree.map_structure(
                lambda array, owner=owner: ops.take(array, owner, axis=0), (last, masks, cache)
            )
            tokens = ops.concatenate([token, ids[:, :-1]], axis=1)
            mask = widened(ops.cast(mask, "int32"), ids.shape[1] - 1, 1)
            found.append(self.decode(tokens, of_prompts, width - 1, mask)[0])
        return found

    def decode(self, token_ids, cache, index, mask):
        """Hidden states (R, q, D) of `token_ids` (R, q), in columns index, index + 1, ..., and the updated cache.

        `mask` (R, S) is 1 in the columns that hold tokens. Where `index` is an int, the cache may still lack these columns.
        """
        columns = index + ops.arange(token_ids.shape[1], dtype="int32")
        distance = ops.expand_dims(columns, 1) - ops.arange(mask.shape[1], dtype="int32")
        held = ops.expand_dims(ops.cast(mask, "bool"), 1)
        x = self.embed(token_ids)
        rotations, seen, updated = {}, {}, []
        for layer, layer_cache in zip(self.backbone.transformer_layers, cache, strict=True):
            kind, rotation = self.rotation(layer, columns)
            if kind not in rotations:
                rotations[kind] = rotation()
            window = min(mask.shape[1], self.window(layer))
            if window not in seen:
                within = ops.logical_and(distance >= 0, distance < window)
                seen[window] = ops.logical_and(within, held)
            run = functools.partial(self.run, layer, index=index, seen=seen[window], rotation=rotations[kind])
            x, layer_cache = layer.rematerialized_call(run, x)(x, layer_cache)  # `run` as it is, but for `keras.RematScope`
            updated.append(layer_cache)
        return self.finish(x), updated


def write_columns(array, index, values):
    """`array` (B, S, ...) with `values` (B, q, ...) in columns index, index + 1, ...

    Where `index` is an int, the columns may be new ones, next to the last. Where it is a tensor, they are written in place:
    compilers see that the old array is not needed any more; Keras' update on Torch copies all of it.
    """
    if isinstance(index, int):
        return ops.concatenate([array[:, :index], values, array[:, index + values.shape[1] :]], axis=1)
    if keras.config.backend() == "torch":
        return array.index_copy_(1, index + ops.arange(values.shape[1], dtype="int64"), values)
    return ops.slice_update(array, (0, index, *[0] * (len(array.shape) - 2)), values)


def attend(query, keys, values, seen, scale, cap=None, fused=False):
    """softmax(scale query keys^T) values over the columns that are seen: (B, q, n, h).

    As KerasHub's own attention, but for the sliding window: there it is a mask of all columns by all columns, which every
    layer makes anew at every token, and of which Torch reads the place on the host.

    Args:
        query: (B, q, n, h).
        keys, values: (B, S, k, h), where k divides n.
        seen: (B, q, S) bool. A query that sees no column has some finite result.
        scale: float.
        cap: float, of soft-capped scores; `None` for none.
        fused: whether Keras' fused attention is used.
    """
    (rows, length, heads, size), groups = query.shape, keys.shape[2]
    if fused:
        settings = {} if cap is None else {"attn_logits_soft_cap": cap}
        if length > 1:  # cuDNN has a gradient for even lengths alone; a token that is sampled needs none
            query, keys, values, seen = (_even(array, (1,)) for array in (query, keys, values, _even(seen, (2,))))
        attended = ops.dot_product_attention(query, keys, values, mask=ops.expand_dims(seen, 1), scale=scale, **settings)
        return attended[:, :length]
    query = ops.reshape(query * ops.cast(scale, query.dtype), (rows, length, groups, heads // groups, size))
    logits = ops.einsum("btkgh,bskh->bkgts", query, keys)
    if cap is not None:
        logits = ops.tanh(logits / cap) * cap
    weights = ops.softmax(ops.where(seen[:, None, None], ops.cast(logits, "float32"), -1e9))
    return ops.reshape(ops.einsum("bkgts,bskh->btkgh", ops.cast(weights, values.dtype), values), (rows, length, heads, size))


def _even(array, axes):
    """`array`, with a zero more along each of `axes` that is odd."""
    return ops.pad(array, [(0, array.shape[axis] % 2 if axis in axes else 0) for axis in range(len(array.shape))])
