"""Any causal language model, by the methods that KerasHub's own `generate` uses."""

import functools
import inspect

import keras
from keras import ops

from keras_bond.families.family import Family, joined_on_the_left, to_the_left, widened


class Generic(Family):
    """A `CausalLM` by its `call_with_cache`, and its `backbone` for what has a gradient: always right, not always fast.

    KerasHub's caches have one index for all rows, and no mask: so prompts are padded on the right, and while a row of a
    shorter prompt draws its tokens, those of a longer prompt are read. Each completion is scored by a pass of its own, which
    reads its prompt too. The model is left as it is: LoRA is added to its kernels by Keras.

    Args:
        causal_lm: a KerasHub `CausalLM` whose only inputs are `token_ids` and `padding_mask`.

    Raises:
        ValueError: if the model has other inputs, or no `call_with_cache`.
    """

    name = "generic"
    pads_left = False

    def __init__(self, causal_lm):
        super().__init__(causal_lm)
        names = {*causal_lm.input} if isinstance(causal_lm.input, dict) else {"?"}
        if names != {"token_ids", "padding_mask"}:
            raise ValueError(
                "The policy must be a model of text, whose inputs are `token_ids` and `padding_mask`: load its text preset. "
                f"Received: {type(causal_lm).__name__} with inputs {', '.join(sorted(names))}"
            )
        for method in ("call_with_cache", "_build_cache"):
            if not hasattr(causal_lm, method):
                raise ValueError(
                    "The policy must have KerasHub's `call_with_cache`, and `_build_cache`, by which tokens are drawn. "
                    f"Received: {type(causal_lm).__name__} without `{method}`"
                )
        self.longest = getattr(causal_lm.backbone, "max_sequence_length", None)
        self._takes = inspect.signature(causal_lm.call_with_cache).parameters
        small, wide = (self._cache_spec(columns) for columns in (2, 3))
        self._structure = small
        self._arrays = [
            ([*one.shape], next((axis for axis, size in enumerate(one.shape) if size != other.shape[axis]), None), one.dtype)
            for one, other in zip(keras.tree.flatten(small), keras.tree.flatten(wide), strict=True)
        ]
        self.reads_ahead = all(columns is not None for _, columns, _ in self._arrays)

    def new_cache(self, rows, columns):
        cache = []
        for shape, axis, dtype in self._arrays:
            shape = [rows if i == 0 else columns if i == axis else size for i, size in enumerate(shape)]
            cache.append((ops.zeros(shape, dtype),))
        return cache

    def widen(self, cache, more):
        for place, (array,) in enumerate(cache):
            axis = self._arrays[place][1]
            cache[place] = (array if axis is None else widened(array, more, axis=axis),)

    def read(self, token_ids, mask):
        cache = self.new_cache(*token_ids.shape)
        return (
            self._call(token_ids, cache, ops.convert_to_tensor(0, "int32"))[1]
            if token_ids.shape[1] and self.reads_ahead
            else cache
        )

    def step(self, token, cache, column, mask):
        logits, cache = self._call(ops.expand_dims(token, 1), cache, column)
        return logits[:, 0], cache

    def hidden(self, prompt_ids, prompt_mask, completion_ids):
        (prompts, width), (rows, length) = prompt_ids.shape, completion_ids.shape
        prompt_ids, prompt_mask = (ops.repeat(of, rows // prompts, axis=0) for of in (prompt_ids, prompt_mask))
        ids = ops.concatenate([ops.cast(prompt_ids, "int32"), ops.cast(completion_ids, "int32")], axis=1)
        mask = widened(ops.cast(prompt_mask, "int32"), length, 1)
        ids, lengths = to_the_left(ids, mask, width + length - 1)  # the last token is not read
        places = ops.expand_dims(lengths - length - 1, 1) + ops.arange(length, dtype="int32")
        mask = ops.arange(ids.shape[1], dtype="int32") < ops.expand_dims(lengths - 1, 1)
        hidden = self.backbone({"token_ids": ids, "padding_mask": ops.cast(mask, "int32")}, training=False)
        return ops.take_along_axis(hidden, ops.expand_dims(places, 2), axis=1)

    def hidden_by_groups(self, prompts, completions):
        ids, mask = (joined_on_the_left(fields) for fields in zip(*(of[:2] for of in prompts), strict=True))
        pick = functools.partial(ops.take, axis=0)
        return [self.hidden(pick(ids, owner), pick(mask, owner), rows) for owner, rows, *_ in completions]

    def logits(self, hidden):
        if self.causal_lm.output is self.backbone.output:  # as RWKV's, whose backbone ends in logits
            return hidden
        logits, cap = super().logits(hidden), getattr(self.causal_lm, "final_logit_cap", None)
        return logits if cap is None else ops.tanh(logits / cap) * cap

    @property
    def embedding(self):
        return getattr(self.backbone, "language_model", self.backbone).token_embedding

    def _call(self, token_ids, cache, column):
        """The model's own logits (R, q, V) of tokens (R, q) in columns column, column + 1, ..., and the updated cache."""
        cache = keras.tree.pack_sequence_as(self._structure, [array for (array,) in cache])
        places = {"cache_update_index": column} if "cache_update_index" in self._takes else {}
        if not places:  # it may take some token for padding
            places = {"padding_mask": ops.ones(token_ids.shape, "int32")}
        logits, _, cache = self.causal_lm.call_with_cache(token_ids=token_ids, cache=cache, **places)
        return logits, [(array,) for array in keras.tree.flatten(cache)]

    def _cache_spec(self, columns):
        """What `call_with_cache` takes for a cache of two rows: shapes and dtypes, in its own structure."""
        return _Built(self.causal_lm).compute_output_spec(keras.KerasTensor((2, columns), dtype="int32"))


class _Built(keras.Operation):
    """A model's cache of tokens; asked for its output's shapes, it computes nothing."""

    def __init__(self, causal_lm):
        super().__init__()
        self._build = causal_lm._build_cache

    def call(self, token_ids):
        given = {"token_ids": token_ids, "padding_mask": ops.ones_like(token_ids)}
        needed = inspect.signature(self._build).parameters.values()
        return self._build(**{p.name: given.get(p.name) for p in needed if p.name in given or p.default is p.empty})[1]
