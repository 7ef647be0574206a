"""Sampling from a KerasHub causal language model, and scoring what was sampled.

Prompts are padded on the left, so that every completion starts in the same column: rows of different lengths advance in
step, each has the full completion budget, and the positions to score are a slice. Rotary positions are relative, so a
shifted row has the same distribution. A family that cannot have padding there (`Family.pads_left`) samples in columns that
start with the prompts: a row reads on while it has tokens of its prompt ahead, and draws from then on.
"""

import functools
import itertools
import operator
import sys
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_bond import families, presets
from keras_bond._checks import check_at_least, check_number
from keras_bond.data import Fitting, Table, bucket, encode, pad_left
from keras_bond.data.chat import turn_ends
from keras_bond.families.family import to_the_left, widened
from keras_bond.ops import (
    completion_mask,
    draw_tokens,
    in_chunks,
    in_turns,
    sequence_log_prob,
    smallest_divisor,
    token_log_probs,
)
from keras_bond.rollout.adapters import differ_in_adapters_alone, join_sides, set_products, side_by_side, split_sides
from keras_bond.rollout.devices import fewest_rows, is_readable, on_one_cpu, spread_rows
from keras_bond.rollout.functional import Program, Recorded, in_threads, using
from keras_bond.rollout.sizes import row_sizes, segments
from keras_bond.rollout.turns import Turns

LOGITS_AT_ONCE = 2**26
"""About how many logits exist at a time in scoring and in the update: 256 MiB in float32."""


class Completions(NamedTuple):
    """A batch of B sampled completions of at most T tokens."""

    token_ids: Any
    """(B, T) int32; padding after the stop token."""
    mask: Any
    """(B, T) bool, true up to and including the stop token."""
    log_probs: Any
    """(B, T) float32, log-probability of each token under the distribution it was drawn from; 0 after the stop token."""


class Rollout:
    """Compiled sampling and scoring for one `CausalLM`, with the weights as arguments.

    Args:
        causal_lm: a KerasHub `CausalLM` of text, with its preprocessor.
        max_prompt_length: tokens, the start token included.
        max_completion_length: tokens, the stop token included.
        temperature: > 0, divides the logits when sampling and when scoring.
        stop_token_ids: `"auto"` (the tokenizer's end token, what it has of `data.chat.TURN_ENDS`, and what the
            `generation_config.json` of the checkpoint names that `presets.load` had it from) or a sequence of ids.
        draw: how a token is chosen, `f(logits (B, V), uniforms (B,), temperature) -> (token_ids, log_probs)`, each (B,):
            `ops.draw_tokens`, or `ops.greedy_tokens`.
        sampling_batch_size: prompts that are sampled at a time, with the keys and values of all their samples in memory; by
            default all. The same samples come of any size; where it does not divide a batch, the next smaller divisor is
            taken.
        long_prompts: what becomes of prompts that are longer than `max_prompt_length`: see `data.Fitting`.
        chat_template: how conversations become text: `None`, they are refused, and prompts of text are seen as they are;
            `"auto"`, the template of the model's family, or of the folder that `presets.load` had it from; or what
            `data.chat.template` takes. With a template, a prompt of text is one message of the user.
        family: how the model is run: `"auto"` (the fastest way that is known) or the name of a family, such as `"generic"`,
            see `families.of`; it is held to the model's own logits, see `families.prove`. Or a `families.Family`, as it is.

    Raises:
        ValueError: if the model is not supported or an argument is out of range; if the family says something else than the
            model.
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
        long_prompts="error",
        chat_template=None,
        family="auto",
    ):
        self.family = family if isinstance(family, families.Family) else families.of(causal_lm, family)
        if getattr(causal_lm, "preprocessor", None) is None:
            raise ValueError(
                "The policy needs its `preprocessor`, whose tokenizer turns prompts into tokens. Received a "
                f"`{type(causal_lm).__name__}` with preprocessor=None: load it with `from_preset`."
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
        self.long_prompts = long_prompts
        self.fitting()  # or an error
        self.turns = Turns(causal_lm, chat_template)
        self.stop_token_ids = self._stop_token_ids(stop_token_ids)
        self._take_family(proved=self.family is family)
        self._draw = draw
        self._sample = Program(self._sample_function)
        self._begin = Program(self._begin_function)
        self._go_on = Program(self._go_on_function, donated=2)
        self.jit_compile = False  # on Torch; other backends always compile
        recorded = functools.partial(Recorded, jit_compile=lambda: self.jit_compile)
        self._score = Program(recorded(self._score_function))
        self._score_groups = Program(recorded(self._score_groups_function))
        self._read = recorded(self._read_function)
        self._next_token = recorded(self._next_token_function)

    # Text to tokens and back.

    def tokenize(self, prompts):
        """Token ids of each prompt, str or conversation, start token first: lists of any length. See `data.encode`."""
        return encode(self.tokenizer, self.render(prompts), self.turns.markers)

    def render(self, prompts):
        """The text that the model sees of each prompt: see `Turns.render`."""
        return self.turns.render(prompts)

    @property
    def chat(self):
        """The `data.ChatTemplate`; `None` where there is none."""
        return self.turns.template

    def fitting(self):
        """A fresh `data.Fitting` of prompts into `max_prompt_length`."""
        return Fitting(self.max_prompt_length, self.long_prompts)

    def read(self, prompts):
        """(table, encoded): the `data.Table` of these prompts without those that are dropped, and their token ids.

        Raises:
            ValueError: if prompts are longer than `max_prompt_length` and `long_prompts` is "error"; or one is not text.
        """
        table = Table(prompts)
        stays, encoded = self.fitting()(self.tokenize(table.prompts), table.prompts)
        return table.part(stays), encoded

    def encode(self, prompts):
        """Token ids of each prompt, start token first: a list of lists, see `data.encode`.

        Raises:
            ValueError: if a prompt is not valid Unicode, or longer than `max_prompt_length`, unless `long_prompts` is "cut".
        """
        return self.read(prompts)[1]

    def pad(self, encoded, width=None):
        """(ids, mask) of encoded prompts, each (B, width) int32, padded on the left; by default to their `bucket`."""
        return pad_left(encoded, width or self.bucket(encoded), self.tokenizer.pad_token_id)

    def bucket(self, encoded):
        """The padded width for these prompts: see `data.bucket`."""
        return bucket(max(map(len, encoded)), self.max_prompt_length)

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
        its own, on a CPU at the same time: with few rows the operations of a token are too small to share its cores.

        Up to 42 tokens a pass is one program. With a larger budget it is several, one after another, in which the cache of
        keys and values grows and rows that have stopped leave: it costs what the tokens cost, whatever the budget. Inside
        another program, and on the replicas of a `tf.distribute` strategy, which the host cannot look into, a pass is always
        one program, and each of its tokens attends to all columns.

        Args:
            sources: sequence of (`Weights`, uniforms), (B, S, T) with the same T: S samples a prompt, from one prefill.
            prompt_ids, prompt_mask: (B, P), left-padded.

        Returns:
            A list with the `Completions` of each source: B S rows, the S samples of a prompt next to each other.
        """
        budget, ahead = sources[0][1].shape[2], self._ahead(prompt_ids.shape[1])
        few = len(self._widths(budget + ahead, ahead)) == 1
        if ahead:
            sources = [(weights, widened(ops.convert_to_tensor(uniforms), ahead, axis=2)) for weights, uniforms in sources]
        sources = [(weights, *_tensors(uniforms)) for weights, uniforms in sources]
        prompt, uniforms = _tensors(prompt_ids, prompt_mask), sources[0][1]
        passes = [sources] if differ_in_adapters_alone(self.causal_lm) else [[source] for source in sources]
        sample = self._sample if few or not is_readable(uniforms) else self._sample_in_segments
        run = in_threads if on_one_cpu(uniforms) else itertools.starmap
        sampled = run(sample, [(one, *prompt) for one in passes])
        return [Completions(*(field[:, :budget] for field in fields)) for of_pass in sampled for fields in of_pass]

    def completion_bucket(self, length):
        """The width that completions of at most `length` tokens are cut to: one of few, see `data.bucket`."""
        return bucket(length, self.max_completion_length)

    def trim(self, completions):
        """Several `Completions`, all of them cut to `completion_bucket` of the longest: what is cut off is padding."""
        lengths = [ops.max(ops.sum(ops.cast(one.mask, "int32"), axis=1)) for one in completions]
        width = self.completion_bucket(max(int(ops.convert_to_numpy(length)) for length in lengths))
        return [Completions(*(field[:, :width] for field in one)) for one in completions]

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

        `completion_ids` (B S, T): the S completions of a prompt next to each other. In a fast family they share the pass of
        their prompt, but for its last token.
        """
        return self.family.hidden(prompt_ids, prompt_mask, completion_ids)

    def logits(self, hidden):
        """(..., V): the logits of the token that follows each hidden state (..., D)."""
        return self.family.logits(hidden)

    def by_position(self, function, *arrays):
        """`function(*arrays)`, position by position of (B, T, ...) arrays, a chunk of positions at a time.

        `function` may make logits of its rows, (N, ...) each: at most about `LOGITS_AT_ONCE` of them exist at a time,
        forward and backward. It returns (N,) arrays; these come back as (B, T).
        """
        batch_size, length = arrays[0].shape[:2]
        count = smallest_divisor(length, batch_size * length * self.family.vocabulary_size / LOGITS_AT_ONCE)
        result = in_chunks(function, [ops.swapaxes(array, 0, 1) for array in arrays], count)
        return keras.tree.map_structure(ops.transpose, result)

    def token_log_probs(self, prompt_ids, prompt_mask, completion_ids):
        """(B S, T) float32: `score` under the model's present weights, differentiable."""
        hidden = self.hidden(prompt_ids, prompt_mask, completion_ids)
        return self.by_position(
            lambda h, ids: token_log_probs(self.logits(h), ids, self.temperature), hidden, completion_ids
        )

    def score_groups(self, weights, groups):
        """(B S,) float32: log-probability of each completion of `Groups`, in nats, in the order of the batch."""
        return self._score_groups(weights, keras.tree.map_structure(ops.convert_to_tensor, groups))

    def group_log_probs(self, groups):
        """(B S,) float32: `score_groups` under the model's present weights, differentiable."""

        def log_probs(hidden, ids):
            return token_log_probs(self.logits(hidden), ids, self.temperature)

        hidden = self.family.hidden_by_groups(groups.prompts, groups.completions)
        found = [
            sequence_log_prob(self.by_position(log_probs, of_group, rows.ids), rows.mask)
            for of_group, rows in zip(hidden, groups.completions, strict=True)
        ]
        return ops.take(ops.concatenate(found), groups.places, axis=0)

    def _score_groups_function(self, weights, groups):
        with using(self.causal_lm, weights):
            return self.group_log_probs(groups)

    def _score_function(self, weights, prompt_ids, prompt_mask, completion_ids):
        with using(self.causal_lm, weights):
            return self.token_log_probs(prompt_ids, prompt_mask, completion_ids)

    # Sampling: one program for all columns, or one for each segment of them.

    def _sample_function(self, sources, prompt_ids, prompt_mask):
        """The fields of the completions of each source, of sources that share a pass, in one loop over the budget."""

        def in_one(sources, prompt_ids, prompt_mask):
            _, (_, _, _, _, *sampled), _ = self._begin_function(sources, prompt_ids, prompt_mask, 0)
            return sampled

        return self._by_groups(in_chunks, in_one, sources, prompt_ids, prompt_mask)

    def _sample_in_segments(self, sources, prompt_ids, prompt_mask):
        """As `_sample_function`, by programs between which the host looks how many rows are unfinished.

        So a token costs what the columns and the rows in use cost. A program ends with its segment of columns, or sooner,
        once the unfinished rows fit a smaller batch. There are at most as many programs as pairs of a width (`segments`) and
        a number of rows (`row_sizes`): (log_2(T / 32) + 2) (log_4(R) + 1) for a budget of T tokens and R rows. Each is
        compiled when it is needed first, and sources share it.
        """
        return self._by_groups(in_turns, self._in_segments, sources, prompt_ids, prompt_mask)

    def _by_groups(self, in_parts, sample, sources, prompt_ids, prompt_mask):
        """`sample` gives token ids and log-probs of all sources' rows; here of `sampling_batch_size` prompts at a time."""
        weights, uniforms = zip(*sources, strict=True)

        def by_prompt(prompt_ids, prompt_mask, *uniforms):
            token_ids, log_probs = sample([*zip(weights, uniforms, strict=True)], prompt_ids, prompt_mask)
            fields = token_ids, completion_mask(token_ids, self.stop_token_ids), log_probs
            counts = [of_source.shape[1] for of_source in uniforms]
            return [*zip(*(split_sides(field, counts) for field in fields), strict=True)]

        count = prompt_ids.shape[0]
        parts = smallest_divisor(count, count / (self.sampling_batch_size or count))
        sampled = in_parts(by_prompt, [prompt_ids, prompt_mask, *uniforms], parts)
        return keras.tree.map_structure(lambda rows: ops.reshape(rows, (-1, *rows.shape[2:])), sampled)

    def _in_segments(self, sources, prompt_ids, prompt_mask):
        """Token ids and log-probs (R, T) of all sources' rows, which share a pass."""
        weights, uniforms = map(list, zip(*sources, strict=True))
        widths = self._widths(uniforms[0].shape[2], self._ahead(prompt_ids.shape[1]))
        uniforms = join_sides(uniforms)
        sizes = row_sizes(uniforms.shape[0], fewest_rows(uniforms))
        first = [(of_source, numbers[:, :, : widths[0]]) for of_source, numbers in sources]
        fixed, state, progress = self._begin(first, prompt_ids, prompt_mask, sizes[1])
        fixed, places = (*fixed, uniforms), np.arange(sizes[0])
        parts: list = []
        while True:
            steps, unfinished = ops.convert_to_numpy(progress).tolist()
            step, cache, *rows = state  # of each row: its last token, whether it has stopped, token ids, log-probs
            if unfinished == 0 or steps == widths[-1]:
                return self._put_together([*parts, (places, *rows[2:])], widths[-1])
            if unfinished <= sizes[1]:
                parts.append((places, *rows[2:]))
                while unfinished <= sizes[1]:
                    sizes = sizes[1:]
                stay = np.argsort(ops.convert_to_numpy(rows[1]), kind="stable")[: sizes[0]]  # to fill up, finished ones too
                places, pick = places[stay], functools.partial(ops.take, indices=stay.astype("int32"), axis=0)
                fixed, rows = keras.tree.map_structure(pick, (fixed, rows))
                _replace(cache, pick)
            if steps == widths[0]:
                more, widths = widths[1] - steps, widths[1:]
                rows[2:] = self._widened(rows[2:], more)
                self.family.widen(cache, more)
            state, progress = self._go_on(weights, fixed, (step, cache, *rows), sizes[1])

    def _put_together(self, parts, budget):
        """Each row as the last part that holds it has it, of the budget's width; a part: (places, token ids, log-probs)."""
        of_parts, *fields = zip(*parts, strict=True)
        rows = [self._widened(sampled, budget - sampled[0].shape[1]) for sampled in zip(*fields, strict=True)]
        if len(rows) == 1:
            return rows[0]
        places, last = np.concatenate(of_parts), np.zeros(len(of_parts[0]), "int32")
        last[places] = np.arange(len(places))  # of equal places the last one counts
        return [ops.take(ops.concatenate(field), last, axis=0) for field in zip(*rows, strict=True)]

    def _widened(self, sampled, more):
        """(token_ids, log_probs) with more columns."""
        token_ids, log_probs = sampled
        return [widened(token_ids, more, self.tokenizer.pad_token_id), widened(log_probs, more)]

    def _ahead(self, width):
        """How many columns sampling has beside those of the completion: where prompts start it, all but their first."""
        return 0 if self.family.pads_left else width - 1

    def _widths(self, budget, ahead):
        """The widths that a pass of `budget` columns grows to; the first holds the prompts, of `ahead` columns."""
        return [width for width in segments(budget) if width > ahead]

    def _begin_function(self, sources, prompt_ids, prompt_mask, fewer):
        """Reads the prompts, and draws as many tokens as there are uniforms, for all samples of all sources in one loop.

        Returns:
            (fixed, state, progress): what stays, for every sample, those of a prompt side by side, as `_go_on_function`
            takes it, but for the uniforms; and as `_go_on_function` returns.
        """
        weights, uniforms = map(list, zip(*sources, strict=True))
        counts, once = [of_source.shape[1] for of_source in uniforms], [1] * len(sources)
        own = ops.tile(ops.eye(len(sources)), (prompt_ids.shape[0], 1))
        prompt_ids, mask = (ops.repeat(rows, len(sources), axis=0) for rows in (ops.cast(prompt_ids, "int32"), prompt_mask))
        first = prompt_ids.shape[1] - 1
        if self.family.pads_left:
            cache = self._read(weights, own, prompt_ids[:, :-1], mask[:, :-1])
            prompt_ids, ahead = prompt_ids[:, -1:], ops.zeros_like(prompt_ids[:, 0])  # the first step takes the last token
        else:
            prompt_ids, lengths = to_the_left(prompt_ids, mask)
            cache, mask, ahead = self._read(weights, own, prompt_ids[:, :-1], mask[:, :-1]), mask[:, :1], lengths - 1
        start = ops.min(ahead) if self.family.reads_ahead else ops.convert_to_tensor(0, "int32")

        def for_every_sample(rows):
            sides = zip(split_sides(rows, once), counts, strict=True)
            return join_sides([ops.repeat(side, count, axis=1) for side, count in sides])

        fixed, cache = keras.tree.map_structure(for_every_sample, ((own, mask, prompt_ids, ahead), cache))
        own, mask, prompt_ids, ahead = fixed
        uniforms = join_sides(uniforms)
        self.family.widen(cache, mask.shape[1] - 1 + uniforms.shape[1] - first)
        state = (
            start,
            cache,
            ops.take(prompt_ids, start, axis=1),
            ops.zeros(ahead.shape, "bool"),
            ops.full(uniforms.shape, self.tokenizer.pad_token_id, "int32"),
            ops.zeros(uniforms.shape, "float32"),
        )
        return fixed, *self._go_on_function(weights, (*fixed, uniforms), state, fewer)

    def _go_on_function(self, weights, fixed, state, fewer):
        """Draws tokens until the state has no more columns for them, or no more rows than `fewer` are unfinished.

        Args:
            weights: of the sources.
            fixed: (own, mask, prompt_ids, ahead, uniforms): see `side_by_side`; (R, P), of the columns up to the first token
                that is taken; (R, Q), that token and what is read after it; (R,), how many tokens a row reads before it
                draws; (R, T) with T at least the state's width.
            state: (step, cache, token, done, token_ids, log_probs): how many tokens have been read or drawn, keys and
                values, and of each row the last token (R,), whether it has stopped (R,), and all that was drawn (R, width).
            fewer: int.

        Returns:
            (state, progress): the latter (tokens that have been read or drawn, rows that are unfinished).
        """
        own, mask, prompt_ids, ahead, uniforms = fixed
        width = state[4].shape[1]

        def unfinished(done):
            return ops.sum(ops.cast(ops.logical_not(done), "int32"))

        def goes_on(step, cache, token, done, token_ids, log_probs):
            return ops.logical_and(step < width, unfinished(done) > fewer)

        fixed = weights, own, uniforms, widened(ops.cast(mask, "int32"), width - 1, 1), prompt_ids, ahead
        state = self._next_token.repeat(goes_on, fixed, state)
        return state, ops.stack([state[0], unfinished(state[3])])

    def _read_function(self, weights, own, prompt_ids, prompt_mask):
        with side_by_side(self.causal_lm, weights, own):
            return self.family.read(prompt_ids, prompt_mask)

    def _next_token_function(
        self, weights, own, uniforms, mask, prompt_ids, ahead, step, cache, token, done, token_ids, log_probs
    ):
        column, width = mask.shape[1] - token_ids.shape[1] + step, token_ids.shape[1]
        with side_by_side(self.causal_lm, weights, own):
            logits, cache = self.family.step(token, cache, column, mask)
        place = ops.expand_dims(step - ahead, 1)  # of the row's token in its completion
        numbers = ops.take_along_axis(uniforms, ops.maximum(place, 0), axis=1)[:, 0]
        token, log_prob = self._draw(logits, numbers, self.temperature)
        token, log_prob = ops.where(done, self.tokenizer.pad_token_id, token), ops.where(done, 0.0, log_prob)
        here = ops.equal(ops.arange(width, dtype="int32"), place)
        token_ids = ops.where(here, ops.expand_dims(token, 1), token_ids)
        log_probs = ops.where(here, ops.expand_dims(log_prob, 1), log_probs)
        reads = step < ahead
        for stop in self.stop_token_ids:
            done = ops.logical_or(done, ops.logical_and(ops.equal(token, stop), ops.logical_not(reads)))
        following = ops.take(prompt_ids, ops.minimum(step + 1, prompt_ids.shape[1] - 1), axis=1)
        return step + 1, cache, ops.where(reads, following, token), done, token_ids, log_probs

    def _take_family(self, proved):
        together = self.max_prompt_length + self.max_completion_length
        if self.family.longest is not None and self.family.longest < together < sys.maxsize:  # which stands for no limit
            raise ValueError(
                f"`max_prompt_length` and `max_completion_length` must together be at most {self.family.longest}, the "
                "tokens that the policy has positions for. "
                f"Received: {self.max_prompt_length} and {self.max_completion_length}"
            )
        if self.family.name != "generic":
            set_products(self.causal_lm)
        if not proved:
            families.prove(self.family)

    def _stop_token_ids(self, stop_token_ids):
        if not (isinstance(stop_token_ids, str) and stop_token_ids == "auto"):
            try:
                size = self.tokenizer.vocabulary_size()
            except ValueError:  # a saved trainer is being loaded, and the vocabulary comes last
                size = 2**31
            try:
                ids = tuple(operator.index(token) for token in stop_token_ids)
                fit = all(
                    0 <= i < size and not isinstance(given, bool) for i, given in zip(ids, stop_token_ids, strict=True)
                )
            except TypeError:  # no sequence, or not of integers: of letters, say
                fit = False
            if fit:
                return ids
            raise ValueError(
                f'`stop_token_ids` must be "auto" or a sequence of token ids, each below {size}. '
                f"Received: stop_token_ids={stop_token_ids!r}"
            )
        ends = [*turn_ends(self.tokenizer), *presets.generation_config(self.causal_lm).get("eos_token_id", [])]
        return tuple(dict.fromkeys(ends))


def _replace(cache, function):
    """Put `function(array)` in place of every array, one after another: so that never all are in memory twice."""
    for layer, arrays in enumerate(cache):
        cache[layer] = tuple(map(function, arrays))


def _tensors(*values):
    dtypes = {"f": "float32", "i": "int32", "b": "bool"}
    tensors = [ops.convert_to_tensor(v, dtype=dtypes[v.dtype.kind]) if isinstance(v, np.ndarray) else v for v in values]
    return [spread_rows(tensor, tensors[0].shape[0]) for tensor in tensors]  # the first has a row for each prompt
