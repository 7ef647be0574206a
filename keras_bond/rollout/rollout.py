"""Sampling from a KerasHub causal language model, and scoring what was sampled.

Prompts are padded on the left, so that every completion starts in the same column: rows of different lengths advance in
step, each has the full completion budget, and the positions to score are a slice. Rotary positions are relative, so a
shifted row has the same distribution.
"""

import functools
import operator
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_bond._checks import check_at_least, check_number
from keras_bond.data import encode, token_id
from keras_bond.ops import completion_mask, draw_tokens, in_chunks, smallest_divisor, token_log_probs
from keras_bond.rollout.adapters import differ_in_adapters_alone, join_sides, set_products, side_by_side, split_sides
from keras_bond.rollout.decoder import SUPPORTED, decode, new_cache, write_columns
from keras_bond.rollout.devices import on_one_cpu, spread_rows
from keras_bond.rollout.functional import Program, Recorded, using

LOGITS_AT_ONCE = 2**26
"""About how many logits exist at a time in scoring and in the update: 256 MiB in float32."""


class Completions(NamedTuple):
    """A batch of B sampled completions of at most T tokens."""

    token_ids: Any
    """(B, T) int32; padding after the stop token."""
    mask: Any
    """(B, T) bool, true up to and including the stop token."""
    log_probs: Any
    """(B, T) float32, log-probability of each token under the distribution it was drawn from."""


class Rollout:
    """Compiled sampling and scoring for one `CausalLM`, with the weights as arguments.

    Args:
        causal_lm: a KerasHub `CausalLM` with a Gemma, Gemma 2 or Gemma 3 (text) backbone and its preprocessor.
        max_prompt_length: tokens, the start token included.
        max_completion_length: tokens, the stop token included.
        temperature: > 0, divides the logits when sampling and when scoring.
        stop_token_ids: `"auto"` (the tokenizer's end token, and `<end_of_turn>` where it exists) or a sequence of ids.
        draw: how a token is chosen, `f(logits (B, V), uniforms (B,), temperature) -> (token_ids, log_probs)`, each (B,):
            `ops.draw_tokens`, or `ops.greedy_tokens`.
        sampling_batch_size: prompts that are sampled at a time, with the keys and values of all their samples in memory; by
            default all. The same samples come of any size; where it does not divide a batch, the next smaller divisor is
            taken.

    Raises:
        ValueError: if the model is not supported or an argument is out of range.
    """

    def __init__(
        self,
        causal_lm,
        max_prompt_length,
        max_completion_length,
        temperature=1.0,
        stop_token_ids="auto",
        draw=draw_tokens,
        sampling_batch_size=None,
    ):
        backbone = getattr(causal_lm, "backbone", None)
        if not isinstance(backbone, SUPPORTED):
            raise ValueError(
                "The policy must be a KerasHub `CausalLM` with a Gemma, Gemma 2 or Gemma 3 backbone, such as "
                "`keras_hub.models.GemmaCausalLM.from_preset(...)`. "
                f"Received: {type(causal_lm).__name__} with backbone {type(backbone).__name__}"
            )
        if getattr(causal_lm, "preprocessor", None) is None:
            raise ValueError(
                "The policy needs its `preprocessor`, whose tokenizer turns prompts into tokens. Received a "
                f"`{type(causal_lm).__name__}` with preprocessor=None: load it with `from_preset`."
            )
        if getattr(backbone, "vision_encoder", None) is not None:
            raise ValueError("Only text models are supported: load the Gemma 3 preset whose name ends in `_text`.")
        if getattr(backbone, "use_bidirectional_attention", False):
            raise ValueError(
                "The policy must be a model that writes, each of whose tokens sees those before it. Received: a backbone "
                "that embeds texts, with use_bidirectional_attention=True"
            )
        theirs = {
            type(layer) for layer in backbone.transformer_layers if not type(layer).__module__.startswith("keras_hub.")
        }
        if theirs:
            raise ValueError(
                "The layers of the policy's backbone must be KerasHub's own: their parts are run here, not their `call`. "
                f"Received: {', '.join(sorted(layer.__name__ for layer in theirs))}"
            )
        self.max_prompt_length = check_at_least(1, max_prompt_length=max_prompt_length)
        self.max_completion_length = check_at_least(1, max_completion_length=max_completion_length)
        self.sampling_batch_size = sampling_batch_size
        if sampling_batch_size is not None:
            self.sampling_batch_size = check_at_least(1, sampling_batch_size=sampling_batch_size)
        expected = "be above 0: at 0 all samples are the same (greedy) and Best-of-n of them is no better than one"
        self.temperature = check_number(expected, lambda temperature: temperature > 0, temperature=temperature)
        self.causal_lm = causal_lm
        self.tokenizer = causal_lm.preprocessor.tokenizer
        self.stop_token_ids = self._stop_token_ids(stop_token_ids)
        set_products(causal_lm)
        self._draw = draw
        self._vocabulary_size = causal_lm.backbone.token_embedding.input_dim
        self._sample = Program(self._sample_function)
        self.jit_compile = False  # on Torch; other backends always compile
        recorded = functools.partial(Recorded, jit_compile=lambda: self.jit_compile)
        self._score = Program(recorded(self._score_function))
        self._read = recorded(self._read_function)
        self._next_token = recorded(self._next_token_function)

    # Text to tokens and back.

    def encode(self, prompts):
        """Token ids of each prompt, start token first: a list of lists, see `data.encode`.

        Raises:
            ValueError: if a prompt is not valid Unicode, or is longer than `max_prompt_length`; it names the prompt.
        """
        encoded = encode(self.tokenizer, prompts)
        for i, row in enumerate(encoded):
            if len(row) > self.max_prompt_length:
                raise ValueError(
                    f"Prompt {i} has {len(row)} tokens (start token included), more than `max_prompt_length`="
                    f"{self.max_prompt_length}: shorten it or raise the limit. Received: {prompts[i]!r:.200}"
                )
        return encoded

    def pad(self, encoded, width=None):
        """(ids, mask) of encoded prompts, each (B, width) int32, padded on the left.

        The default width is the longest prompt's, rounded up to a multiple of 8 within `max_prompt_length`.
        """
        width = width or self.bucket(encoded)
        ids = np.full((len(encoded), width), self.tokenizer.pad_token_id, "int32")
        mask = np.zeros((len(encoded), width), "int32")
        for i, row in enumerate(encoded):
            ids[i, width - len(row) :] = row
            mask[i, width - len(row) :] = 1
        return ids, mask

    def bucket(self, encoded):
        """The padded width for these prompts: one width, hence one compiled program, per data set."""
        return min(-(-max(map(len, encoded)) // 8) * 8, self.max_prompt_length)

    def decode(self, completions):
        """The texts of `completions`, without their stop tokens: a list of B str."""
        ids, mask = ops.convert_to_numpy(completions.token_ids), ops.convert_to_numpy(completions.mask)
        keep = mask.astype(bool) & ~np.isin(ids, self.stop_token_ids)
        texts = self.tokenizer.detokenize(np.where(keep, ids, self.tokenizer.pad_token_id))
        if hasattr(texts, "numpy"):
            texts = [t.decode("utf-8", errors="replace") for t in texts.numpy()]
        return [str(t) for t in texts]

    # Compiled pieces.

    def sample(self, weights, prompt_ids, prompt_mask, uniforms):
        """Sample one completion per row; a pure function of weights, prompts and uniform random numbers.

        Args:
            weights: `Weights`.
            prompt_ids, prompt_mask: (B, P), left-padded.
            uniforms: (B, T), in [0, 1): one number a token.

        Returns:
            `Completions`.
        """
        (completions,) = self.sample_each([(weights, uniforms[:, None])], prompt_ids, prompt_mask)
        return completions

    def sample_each(self, sources, prompt_ids, prompt_mask):
        """Sample from several sources, policy and anchor say.

        Where they differ in LoRA's factors alone they share one pass over the frozen weights. Otherwise each has a pass of
        its own, one after another in one compiled program, and on a CPU in programs that share its cores: with few rows the
        operations of a token are too small to be shared.

        Args:
            sources: sequence of (`Weights`, uniforms), (B, S, T) with the same T: S samples a prompt, from one prefill.
            prompt_ids, prompt_mask: (B, P), left-padded.

        Returns:
            A list with the `Completions` of each source: B S rows, the S samples of a prompt next to each other.
        """
        sources = [(weights, *_tensors(uniforms)) for weights, uniforms in sources]
        prompt = _tensors(prompt_ids, prompt_mask)
        apart = on_one_cpu(sources[0][1]) and not differ_in_adapters_alone(self.causal_lm)
        calls = [([source], *prompt) for source in sources] if apart else [(sources, *prompt)]
        return [Completions(*fields) for sampled in self._sample.side_by_side(calls) for fields in sampled]

    def score(self, weights, prompt_ids, prompt_mask, completion_ids):
        """(B S, T) float32: log-probability of each token of `completion_ids` (B S, T) at the sampling temperature.

        Raises:
            ValueError: if there are not equally many completions for each of the B prompts.
        """
        if completion_ids.shape[0] % prompt_ids.shape[0]:
            raise ValueError(
                "`completion_ids` must have equally many rows for each prompt, those of a prompt next to each other. "
                f"Received: {completion_ids.shape[0]} completions of {prompt_ids.shape[0]} prompts"
            )
        return self._score(weights, *_tensors(prompt_ids, prompt_mask, completion_ids))

    def hidden(self, prompt_ids, prompt_mask, completion_ids):
        """(B S, T, D): the last hidden state before each completion token, from the model's present weights.

        `completion_ids` (B S, T): the S completions of a prompt next to each other. They share the pass of their prompt, but
        for its last token.
        """
        (prompts, width), (rows, length) = prompt_ids.shape, completion_ids.shape
        read = width - 1 if rows > prompts else 0
        of_prompts = prompt_ids[:, read:], prompt_mask, self._prefill(prompt_ids[:, :read], prompt_mask[:, :read])
        rest, mask, cache = keras.tree.map_structure(lambda array: ops.repeat(array, rows // prompts, axis=0), of_prompts)
        ids = ops.concatenate([rest, completion_ids[:, :-1]], axis=1)
        hidden, _ = decode(self.causal_lm.backbone, ids, cache, read, _with_completion(mask, length))
        return hidden[:, width - 1 - read :]

    def logits(self, hidden):
        """(..., V): the logits of the token that follows each hidden state (..., D)."""
        return self.causal_lm.backbone.token_embedding(hidden, reverse=True)

    def by_position(self, function, *arrays):
        """`function(*arrays)`, position by position of (B, T, ...) arrays, a chunk of positions at a time.

        `function` may make logits of its rows, (N, ...) each: at most about `LOGITS_AT_ONCE` of them exist at a time,
        forward and backward. It returns (N,) arrays; these come back as (B, T).
        """
        batch_size, length = arrays[0].shape[:2]
        count = smallest_divisor(length, batch_size * length * self._vocabulary_size / LOGITS_AT_ONCE)
        result = in_chunks(function, [ops.swapaxes(array, 0, 1) for array in arrays], count)
        return keras.tree.map_structure(ops.transpose, result)

    def token_log_probs(self, prompt_ids, prompt_mask, completion_ids):
        """(B S, T) float32: `score` under the model's present weights, differentiable."""
        hidden = self.hidden(prompt_ids, prompt_mask, completion_ids)
        return self.by_position(
            lambda h, ids: token_log_probs(self.logits(h), ids, self.temperature), hidden, completion_ids
        )

    def _prefill(self, token_ids, mask):
        """Keys and values of tokens (B, q) whose own hidden states are not needed, q >= 0: see `decode`."""
        cache = new_cache(self.causal_lm.backbone, (token_ids.shape[0], 0), self.causal_lm.compute_dtype)
        return decode(self.causal_lm.backbone, token_ids, cache, 0, mask)[1] if token_ids.shape[1] else cache

    def _score_function(self, weights, prompt_ids, prompt_mask, completion_ids):
        with using(self.causal_lm, weights):
            return self.token_log_probs(prompt_ids, prompt_mask, completion_ids)

    def _sample_function(self, sources, prompt_ids, prompt_mask):
        together = differ_in_adapters_alone(self.causal_lm)
        weights, uniforms = zip(*sources, strict=True)

        def by_prompt(prompt_ids, prompt_mask, *uniforms):
            sources = [*zip(weights, uniforms, strict=True)]
            passes = [sources] if together else [[source] for source in sources]
            sampled = [completions for one in passes for completions in self._generate(one, prompt_ids, prompt_mask)]
            return keras.tree.map_structure(
                lambda rows: ops.reshape(rows, (*prompt_ids.shape[:1], -1, *rows.shape[1:])), sampled
            )

        count = prompt_ids.shape[0]
        parts = smallest_divisor(count, count / (self.sampling_batch_size or count))
        sampled = in_chunks(by_prompt, [prompt_ids, prompt_mask, *uniforms], parts)
        return keras.tree.map_structure(lambda rows: ops.reshape(rows, (-1, *rows.shape[2:])), sampled)

    def _generate(self, sources, prompt_ids, prompt_mask):
        """The completions of all `sources`, from one loop: a row for every sample, the samples of a prompt side by side."""
        weights, uniforms = zip(*sources, strict=True)
        batch_size, budget = prompt_ids.shape[0], uniforms[0].shape[2]
        counts, once = [of_source.shape[1] for of_source in uniforms], [1] * len(sources)
        uniforms = join_sides([ops.reshape(of_source, (-1, budget)) for of_source in uniforms], counts)
        prompt_ids, prompt_mask = (ops.repeat(rows, len(sources), axis=0) for rows in (prompt_ids, prompt_mask))
        own = ops.tile(ops.eye(len(sources)), (batch_size, 1))
        cache = self._read(list(weights), own, prompt_ids[:, :-1], prompt_mask[:, :-1])  # the first step takes the last

        def for_every_sample(of_sources):
            sides = zip(split_sides(of_sources, once), counts, strict=True)
            return join_sides([ops.repeat(side, count, axis=0) for side, count in sides], counts)

        def with_room(cache):  # for the last prompt token and the completion
            return ops.pad(cache, ((0, 0), (0, budget), (0, 0), (0, 0)))

        token, prompt_mask, own, cache = keras.tree.map_structure(
            for_every_sample, (ops.cast(prompt_ids[:, -1], "int32"), prompt_mask, own, cache)
        )
        mask, cache = _with_completion(prompt_mask, budget), keras.tree.map_structure(with_room, cache)
        rows = batch_size * sum(counts)

        def unfinished(step, token, done, token_ids, log_probs, cache):
            return ops.logical_and(step < budget, ops.logical_not(ops.all(done)))

        _, _, _, token_ids, log_probs, _ = self._next_token.repeat(
            unfinished,
            (list(weights), own, uniforms, mask),
            (
                ops.convert_to_tensor(0, "int32"),
                token,
                ops.zeros((rows,), "bool"),
                ops.full((rows, budget), self.tokenizer.pad_token_id, "int32"),
                ops.zeros((rows, budget), "float32"),
                cache,
            ),
        )
        completions = token_ids, completion_mask(token_ids, self.stop_token_ids), log_probs
        return zip(*(split_sides(field, counts) for field in completions), strict=True)

    def _read_function(self, weights, own, prompt_ids, prompt_mask):
        with side_by_side(self.causal_lm, weights, own):
            return self._prefill(prompt_ids, prompt_mask)

    def _next_token_function(self, weights, own, uniforms, mask, step, token, done, token_ids, log_probs, cache):
        column = mask.shape[1] - token_ids.shape[1] + step
        with side_by_side(self.causal_lm, weights, own):
            hidden, cache = decode(self.causal_lm.backbone, ops.expand_dims(token, 1), cache, column, mask)
            logits = self.logits(hidden)[:, 0]
        token, log_prob = self._draw(logits, ops.take(uniforms, step, axis=1), self.temperature)
        token = ops.where(done, self.tokenizer.pad_token_id, token)
        token_ids = write_columns(token_ids, step, ops.expand_dims(token, 1))
        log_probs = write_columns(log_probs, step, ops.expand_dims(log_prob, 1))
        for stop in self.stop_token_ids:
            done = ops.logical_or(done, ops.equal(token, stop))
        return step + 1, token, done, token_ids, log_probs, cache

    def _stop_token_ids(self, stop_token_ids):
        if not (isinstance(stop_token_ids, str) and stop_token_ids == "auto"):
            try:
                return tuple(operator.index(token) for token in stop_token_ids)
            except TypeError as error:  # no sequence, or not of integers: of letters, say
                raise ValueError(
                    '`stop_token_ids` must be "auto" or a sequence of token ids. '
                    f"Received: stop_token_ids={stop_token_ids!r}"
                ) from error
        end_of_turn = token_id(self.tokenizer, "<end_of_turn>")
        return (self.tokenizer.end_token_id, *([] if end_of_turn is None else [end_of_turn]))


def _with_completion(prompt_mask, length):
    """The mask of the prompts and of `length` tokens from the last of theirs on; of the completion all are seen."""
    return ops.pad(ops.cast(prompt_mask, "int32"), ((0, 0), (0, length - 1)), constant_values=1)


def _tensors(*values):
    dtypes = {"f": "float32", "i": "int32", "b": "bool"}
    tensors = [ops.convert_to_tensor(v, dtype=dtypes[v.dtype.kind]) if isinstance(v, np.ndarray) else v for v in values]
    return [spread_rows(tensor, tensors[0].shape[0]) for tensor in tensors]  # the first has a row for each prompt
