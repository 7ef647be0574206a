"""The shell that every algorithm shares: `fit` collects a trajectory, then makes one compiled update.

    prompts --collect--> Trajectory (samples of policy and anchor, rewards)         on the host, over compiled pieces
            --train_step--> loss, gradients, optimizer, anchor: one compiled update   the backend's custom train step

A subclass states its `objective`; `backend/` holds what JAX, TensorFlow and Torch do differently.
"""

import contextlib
import warnings
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_bond._checks import check_at_least
from keras_bond.anchors import FrozenAnchor
from keras_bond.data import Feed
from keras_bond.ops import in_chunks, sequence_log_prob, smallest_divisor
from keras_bond.rewards import REWARD_LOGS, call_reward, check_reward, compare, imitated, ranks, reward_logs
from keras_bond.rollout import (
    Completions,
    Rollout,
    Scores,
    Trajectory,
    Weights,
    batch_devices,
    check_rows,
    group,
    process_share,
    tokens_of,
    using,
    weights_of,
)
from keras_bond.schedules import count_updates
from keras_bond.trainers.backend import BackendTrainer, rows_here, rows_spread
from keras_bond.trainers.callback_checks import check_callbacks
from keras_bond.trainers.guards import Guards, check_precision, inner, with_loss_scaling
from keras_bond.trainers.progress import ProgressBar
from keras_bond.trainers.saving import StateSaving

METRICS = (
    "reward",
    "kl_reference",
    "kl_anchor",
    "reward_std",
    "abstained",
    "completion_length",
    "truncated",
    "grad_norm",
    "anchor_distance",
    "loss",
)
ANCHOR_METRICS = ("win_rate", "anchor_reward", "tie_rate")


class Draw(NamedTuple):
    """What a rollout takes from the trainer's state: weights, and random numbers from two independent streams."""

    policy: Weights
    anchor: Weights
    reference: Weights
    policy_uniforms: Any
    """(B, m, T), one number per token of the policy's samples."""
    anchor_uniforms: Any
    """(B, k, T), one number per token of the anchor's samples."""


class AlignmentTrainer(StateSaving, BackendTrainer, keras.Model):
    """A `keras.Model` whose `fit` takes prompts, samples from policy and anchor, and descends `objective`.

    Args:
        policy: a KerasHub `CausalLM` of text. It is trained in place.
        reward: `f(prompts, completions, **columns) -> B numbers`, called by name; see `keras_bond.rewards.Reward`.
        anchor: a `keras_bond.anchors.Anchor`. A `FrozenAnchor` is the reference itself, and is held once.
        num_anchor_samples: k, samples of the anchor per prompt, y_1 ... y_k; may be 0.
        num_best_of: n, at most k: the Best-of-n that is imitated; k by default.
        variance_reduction: whether the forward term weighs all k anchor samples by their chance to be the best of n of them,
            less what the policy gives them already: see `ops.forward_kl_loss` (ours). An update is then on k anchor samples
            a prompt. `False` is the paper's estimator, the best of the first n alone: cheaper and noisier.
        num_samples: m, samples of the policy per prompt.
        microbatch_size: prompts whose activations are in memory at a time; by default all of a batch. Smaller is the same
            update in less memory: the forward pass is computed a second time for the backward pass.
        sampling_batch_size: prompts that are sampled at a time, with the keys and values of all their samples in memory; by
            default all of a batch. Smaller is the same samples in less memory and more time. Over devices it is, as
            `microbatch_size`, of all of them on JAX, where it should be a multiple of those that share a batch, and of each
            replica on TensorFlow.
        max_prompt_length: tokens, start token included.
        long_prompts: what becomes of longer prompts: `"error"`, they are refused; `"cut"`, their end is kept, after the
            start token; `"drop"`, they are left out. `fit` warns how many there were.
        max_completion_length: tokens, stop token included.
        temperature: > 0, of both sampling and log-probabilities.
        stop_token_ids: `"auto"` or a sequence of ids.
        chat_template: how prompts that are conversations become text, and prompts of text a turn of the user: `None`,
            `"auto"`, or what `keras_bond.data.chat.template` takes. Completions stop at the end of the turn.
        sampler: only `"random"`: the log-probabilities must be those of the distribution sampled from.
        seed: of prompts' order, policy samples and anchor samples.
        family: how the policy is run, `"auto"` or the name of a family, such as `"generic"`: see `rollout.Rollout`.

    The logs of a step hold the values of that step; those of an epoch their mean over it. Names and units:
    `reward`, `anchor_reward` (mean), `reward_std` (over the batch), `abstained` (share of all samples whose reward is
    `None`: neither the update nor other metrics of rewards count them), `win_rate` (policy sample against anchor samples,
    ties half), `tie_rate`, `penalised` (share with r_J < 0), `kl_anchor`, `kl_reference` (nats, mean log-ratio of the
    policy's samples), `forward_loss`, `backward_loss`, `regularizer`, `loss` (surrogates: only their gradients mean
    something), `completion_length` (tokens), `truncated` (share without a stop token), `grad_norm`, `anchor_distance`
    (Euclidean).
    """

    parts: tuple[str, ...] = ()
    """The metrics that `objective` returns."""

    relative = staticmethod(ranks)
    """What the update needs of rewards (B, m + k) in float64: their order within a prompt, in float32."""

    train_function: Any
    test_function: Any

    def __init__(
        self,
        policy,
        reward,
        *,
        anchor,
        num_anchor_samples,
        num_best_of=None,
        variance_reduction=False,
        num_samples=1,
        microbatch_size=None,
        sampling_batch_size=None,
        max_prompt_length=64,
        max_completion_length=32,
        long_prompts="error",
        temperature=1.0,
        stop_token_ids="auto",
        chat_template=None,
        sampler="random",
        seed=0,
        family="auto",
        name=None,
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        num_samples, seed = check_at_least(1, num_samples=num_samples), check_at_least(0, seed=seed)
        if microbatch_size is not None:
            microbatch_size = check_at_least(1, microbatch_size=microbatch_size)
        check_reward(reward)
        _check_sampler(sampler)
        self.rollout = Rollout(
            policy,
            max_prompt_length,
            max_completion_length,
            temperature,
            stop_token_ids,
            sampling_batch_size=sampling_batch_size,
            long_prompts=long_prompts,
            chat_template=chat_template,
            family=family,
        )
        if not policy.trainable_variables:
            raise ValueError("`policy` has no trainable variables: set `policy.trainable = True` or enable LoRA.")
        if not policy.preprocessor.built:
            policy.preprocessor.build(None)
        for layer in policy.preprocessor._flatten_layers():  # stateless; unbuilt, Keras would build all on row numbers
            layer.built = True
        self.policy = policy
        self._reward = lambda: reward  # out of Keras' sight: a reward that is a layer must not be trained along
        self.anchor = anchor
        self.num_samples, self.num_anchor_samples = num_samples, num_anchor_samples
        self.microbatch_size = microbatch_size
        self.num_best_of = num_best_of or num_anchor_samples
        self.variance_reduction = variance_reduction
        self.seed = seed
        self.anchor.follow(policy.trainable_variables)
        self.reference = anchor
        if not isinstance(anchor, FrozenAnchor):
            self.reference = FrozenAnchor(name="reference")
            self.reference.follow(policy.trainable_variables)
        self.policy_seed, self.anchor_seed = (
            keras.random.SeedGenerator(int(s)) for s in np.random.SeedSequence(seed).generate_state(2) >> 1
        )
        self.cursor = self.add_weight(
            shape=(), dtype="int32", initializer="zeros", trainable=False, name="cursor", aggregation="only_first_replica"
        )
        names = (*METRICS, *(ANCHOR_METRICS if num_anchor_samples else ()), *self.parts)
        self._means = [keras.metrics.Mean(name=metric, dtype="float32") for metric in names]
        self._feed: Any = None
        self._trajectory = lambda: None
        self.built = True

    @property
    def reward(self):
        return self._reward()

    # What a subclass states.

    def objective(self, scores, trajectory):
        """The loss of one update and its parts; its Python runs once, when it is compiled, or on Torch recorded.

        Args:
            scores: `Scores`, what the policy says of the trajectory.
            trajectory: `Trajectory`.

        Returns:
            (loss, logs): a scalar, and a dict of scalars by metric name.
        """
        raise NotImplementedError(f"`{type(self).__name__}` must implement `objective`.")

    # The rollout.

    def draw(self, batch_size):
        """Weights and random numbers for one rollout; advances the seeds and the cursor, the number of prompts drawn so far.

        Both are part of the tracked state: they are saved, and an error or an evaluation leaves them as they were.
        """

        def uniforms(samples, seed):
            shape = (batch_size, samples, self.rollout.max_completion_length)
            return keras.random.uniform(shape, dtype="float32", seed=seed)

        self.cursor.assign(self.cursor + batch_size)
        return Draw(
            policy=weights_of(self.policy),
            anchor=weights_of(self.policy, [s.value for s in self.anchor.shadows]),
            reference=weights_of(self.policy, [s.value for s in self.reference.shadows]),
            policy_uniforms=uniforms(self.num_samples, self.policy_seed),
            anchor_uniforms=uniforms(self.num_anchor_samples, self.anchor_seed),
        )

    def collect(self, batch, draw):
        """Sample y from the policy and y_1 ... y_k from the anchor for the prompts of a batch; score and compare.

        Args:
            batch: a `data.Batch`. Of several processes each has its own rows.
            draw: a `Draw`, for the rows of all processes.

        Returns:
            `Trajectory`.
        """
        rollout, m, k = self.rollout, self.num_samples, self.num_anchor_samples
        prompt = rows_spread(batch.prompt_ids), rows_spread(batch.prompt_mask)

        sources = [(draw.policy, draw.policy_uniforms), (draw.anchor, draw.anchor_uniforms)][: 2 if k else 1]
        y, *others = rollout.trim(rollout.sample_each(sources, *prompt))
        (anchor_samples,) = others or [y]

        y_here, anchor_here = (Completions(*map(rows_here, samples)) for samples in (y, anchor_samples))

        def grouped(*samples):  # of several `Completions`, all of a prompt's side by side
            rows = zip(*((one.token_ids, one.mask) for one in samples), strict=True)
            sides = ([np.reshape(of, (len(batch.prompts), -1, of.shape[1])) for of in field] for field in rows)
            fields = [np.concatenate(of_all, axis=1) for of_all in sides]
            whole = self.microbatch_size is not None and self.microbatch_size < len(batch.prompts)
            return None if whole else group(batch.prompt_ids, batch.prompt_mask, *fields)

        own = grouped(y_here)

        def log_prob(weights):
            if own is not None:
                return rollout.score_groups(weights, own)
            return sequence_log_prob(rollout.score(weights, *prompt, y.token_ids), y.mask)

        # dispatched before the host computes rewards, so that on JAX the device works meanwhile
        anchor_log_prob = log_prob(draw.anchor)
        reference_log_prob = anchor_log_prob if self.reference is self.anchor else log_prob(draw.reference)

        rows = np.concatenate([np.repeat(np.arange(len(batch.prompts)), samples) for samples in (m, k)])
        prompts, columns = batch.rows(rows)
        texts, tokens = (f(y_here) + (f(anchor_here) if k else []) for f in (rollout.decode, tokens_of))
        rewards = call_reward(self.reward, prompts, texts, columns, tokens)
        if batch.real is not None:
            rewards = np.where(batch.real[rows], rewards, np.nan)
        rewards = compare(rewards, m, k, self.relative)
        of_anchor = rewards["relative_anchor_rewards"][::m]
        contenders, weights = imitated(of_anchor, self.num_best_of, self.variance_reduction)
        imitable = Completions(anchor_here.token_ids[contenders], anchor_here.mask[contenders], None)
        return Trajectory(
            prompt_ids=batch.prompt_ids,
            prompt_mask=batch.prompt_mask,
            real=None if batch.real is None else np.repeat(batch.real, m),
            completion_ids=y.token_ids,
            completion_mask=y.mask,
            contender_ids=imitable.token_ids,
            contender_mask=imitable.mask,
            contender_weights=weights,
            **rewards,
            anchor_log_prob=anchor_log_prob,
            reference_log_prob=reference_log_prob,
            groups=grouped(y_here, imitable) if k else own,
        )

    def take(self, places):
        """The `data.Batch` at these places of the prompts that are being trained or evaluated on."""
        return self._feed.take(rows_here(places))

    def collect_or_restore(self, places):
        """`collect` with a fresh draw; where it fails, seeds and cursor are as they were."""
        with self._restoring(self._drawn_from(), only_after_errors=True):
            return self.collect(self.take(places), self.draw(places.shape[0]))

    def observe(self, trajectory):
        """Called with every trajectory after the policy has been trained on it: here a learned quantile learns."""

    @property
    def trajectory(self):
        """The `Trajectory` of the last update; `None` before the first."""
        return self._trajectory()

    def _after_step(self, trajectory):
        self._trajectory = lambda: trajectory  # out of Keras' sight
        self.observe(trajectory)

    def _drawn_from(self):
        return [self.policy_seed.state, self.anchor_seed.state, self.cursor]

    @contextlib.contextmanager
    def _restoring(self, variables, only_after_errors=False):
        values = [ops.copy(variable.value) for variable in variables]
        finished = False
        try:
            yield
            finished = True
        finally:
            if not (finished and only_after_errors):
                for variable, value in zip(variables, values, strict=True):
                    variable.assign(value)

    @contextlib.contextmanager
    def _feeding(self, feed):
        """While this feed is in use; then the one before it is, of the `fit` that was interrupted."""
        before, self._feed = self._feed, feed
        try:
            yield
        finally:
            self._feed = before

    def make_train_function(self, force=False):
        if self.train_function is None or force:
            super().make_train_function(force=force)
            self.train_function = self._collect_before(self.train_function, self._after_step)

    def make_test_function(self, force=False):
        if self.test_function is None or force:
            super().make_test_function(force=force)
            self.test_function = self._collect_before(self.test_function)

    # The update.

    def loss_and_logs(self, trajectory):
        """(loss, logs) of a trajectory under the present weights."""
        t = trajectory.map(ops.convert_to_tensor)
        scores = self.by_replica(self.scores, t)
        loss, logs = self.objective(scores, t)
        log_prob = scores.log_prob

        last_is_stop = sum(ops.cast(ops.equal(t.completion_ids[:, -1], s), "int32") for s in self.rollout.stop_token_ids)
        full = ops.logical_and(t.completion_mask[:, -1], ops.equal(last_is_stop, 0))
        real = ops.cast(ops.ones_like(full) if t.real is None else t.real, "float32")
        share = ops.mean(real)

        def mean(values):
            return ops.mean(real * ops.cast(values, "float32")) / share

        logs |= reward_logs(t)
        return loss, logs | {
            "loss": loss,
            "abstained": (logs["abstained"] - (1 - share)) / share,
            "kl_anchor": mean(log_prob - t.anchor_log_prob),
            "kl_reference": mean(log_prob - t.reference_log_prob),
            "completion_length": mean(ops.sum(ops.cast(t.completion_mask, "int32"), axis=1)),
            "truncated": mean(full),
        }

    def scores(self, t):
        """`Scores` of a `Trajectory`: one forward pass for the policy's samples and the contenders, by microbatches."""
        m, (prompts, contenders), length = self.num_samples, t.contender_weights.shape, t.completion_ids.shape[1]

        def side_by_side(own, others):  # (B, m + C, T): a prompt's samples, then its contenders
            own, others = ops.reshape(own, (prompts, m, length)), ops.reshape(others, (prompts, contenders, length))
            return ops.concatenate([own, others], axis=1)

        if t.groups is not None:
            both = self._with_anchor(lambda: self.rollout.group_log_probs(t.groups), contenders)
            log_prob, *of_all = (ops.reshape(of, (prompts, m + contenders)) for of in both)
            anchor_log_prob = [of[:, m:] for of in of_all]
        else:
            ids, mask = side_by_side(t.completion_ids, t.contender_ids), side_by_side(t.completion_mask, t.contender_mask)
            microbatches = smallest_divisor(prompts, prompts / (self.microbatch_size or prompts))
            log_probs, *of_anchor = in_chunks(self._token_scores, [t.prompt_ids, t.prompt_mask, ids], microbatches)
            log_prob = sequence_log_prob(log_probs, mask)
            anchor_log_prob = [sequence_log_prob(of_contenders, mask[:, m:]) for of_contenders in of_anchor]
        return Scores(ops.reshape(log_prob[:, :m], (-1,)), log_prob[:, m:], *anchor_log_prob)

    def _token_scores(self, prompt_ids, prompt_mask, ids):
        """Token log-probs of the samples `ids` (b, S, T) of b prompts; with variance reduction also the contenders' under
        the anchor, from the same program: what the sampler said of them is rounded otherwise."""

        def log_probs(ids):
            rows = ops.reshape(ids, (-1, ids.shape[2]))
            return ops.reshape(self.rollout.token_log_probs(prompt_ids, prompt_mask, rows), ids.shape)

        contenders = ids[:, self.num_samples :]
        return self._with_anchor(lambda: log_probs(ids), contenders.shape[1], lambda: log_probs(contenders))

    def _with_anchor(self, function, contenders, of_anchor=None):
        """What `function` says of the policy; with variance reduction also what it, or `of_anchor`, says of the anchor."""
        of_policy = function()
        if not (self.variance_reduction and contenders):
            return (of_policy,)
        with using(self.policy, weights_of(self.policy, [s.value for s in self.anchor.shadows])):
            return of_policy, ops.stop_gradient((of_anchor or function)())

    def begin_update(self, logs, gradients, scale):
        """Before the optimizer's step, in the same compiled program: the logs with `grad_norm`, and whether to make it.

        A step that is not finite is not made. Where the loss is scaled, the optimizer sees to gradients that overflow.
        """
        squares = [ops.sum(ops.square(ops.cast(g, "float32"))) for g in gradients if g is not None]
        logs = {**logs, "grad_norm": ops.sqrt(sum(squares)) / scale}
        scaled = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        return logs, ops.isfinite(logs["loss"] if scaled else logs["loss"] + logs["grad_norm"])

    def finish_update(self, logs, updates_before):
        """After the optimizer's step, in the same compiled program: move the anchor, keep the books; returns the logs."""
        values = [v.value for v in self.trainable_variables]
        self.anchor.update(values, updated=ops.cast(self.optimizer.iterations - updates_before, "int32"))
        logs["anchor_distance"] = self.anchor.distance(values)
        return self.track(logs)

    def track(self, logs, weight=1):
        """Update the epoch's means with the logs of a step (`weight`: its rows, where these differ); returns the logs.

        A step counts in the means of rewards as far as its samples have one.
        """
        logs = {m.name: ops.cast(logs.get(m.name, 0.0), "float32") for m in self._means}
        weight = ops.cast(weight, "float32")
        rewarded = weight * (1 - logs["abstained"])
        for mean in self._means:
            mean.update_state(logs[mean.name], sample_weight=rewarded if mean.name in REWARD_LOGS else weight)
        return logs

    @property
    def metrics(self):
        return self._means

    def call(self, inputs, training=False):
        """The policy's logits."""
        return self.policy(inputs, training=training)

    # What a user calls.

    def compile(self, optimizer="adam", **kwargs):
        """As `keras.Model.compile`, without a loss: the objective is the algorithm's own.

        Args:
            optimizer: name or `keras.optimizers.Optimizer`. The paper: `Adam(LinearWarmup(3e-6, 100))`.
                Where it accumulates gradients, its learning-rate schedule counts updates. For a policy that computes in
                float16 it is put into a `LossScaleOptimizer`, unless `auto_scale_loss=False`.
            **kwargs: `run_eagerly`, `jit_compile`, `auto_scale_loss`. On Torch, where Keras' "auto" is `False`,
                `jit_compile=True` has Inductor, Torch's compiler, fuse sampling, scoring and the gradient: minutes at the
                first step, faster ones after it. Where `microbatch_size` parts a batch, the gradient stays eager. It is not
                saved: compile a trainer that was loaded again.
        """
        for name in ("loss", "metrics", "weighted_metrics"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"`{type(self).__name__}.compile` takes no `{name}`: the objective and its metrics are the "
                    f"algorithm's own. Received: {name}={kwargs[name]!r}"
                )
        if kwargs.get("steps_per_execution", 1) != 1:
            raise ValueError(
                "`steps_per_execution` must be 1: every step samples on the host between two updates. "
                f"Received: steps_per_execution={kwargs['steps_per_execution']}"
            )
        with self.distributed():
            optimizer = keras.optimizers.get(optimizer)
            if kwargs.pop("auto_scale_loss", True):
                optimizer = with_loss_scaling(optimizer, self.policy)
        if inner(optimizer).use_ema:
            raise ValueError(
                "`use_ema=True` replaces the policy by its average when `fit` ends; it is not an anchor. "
                "Remove it: the trainer holds its own EMA anchor (`eta`)."
            )
        count_updates(inner(optimizer))
        super().compile(optimizer=optimizer, loss=None, auto_scale_loss=False, **kwargs)
        self.give_optimizer_its_state()

    def fit(
        self,
        x=None,
        batch_size=32,
        epochs=1,
        verbose="auto",
        callbacks=None,
        shuffle=True,
        initial_epoch=0,
        steps_per_epoch=None,
        **kwargs,
    ):
        """Align the policy on prompts.

        The prompts come in an endless order, through which `trainer.cursor` counts: a second `fit` goes on where the first
        one ended, and a trainer that was loaded again goes on where it was saved.

        Args:
            x: the prompts: what `keras_bond.data.Table` takes, or a stream, any iterable without a length, which is
                tokenised as it comes. An iterable that begins anew each time is repeated; an iterator is read from where it
                stands.
            batch_size: prompts a step; every batch is full, and runs on into the next pass over the prompts.
            epochs, verbose, callbacks, initial_epoch: as in Keras.
            shuffle: whether each pass is another permutation of the prompts (`seed` decides them); a stream is not shuffled.
            steps_per_epoch: updates an epoch; by default as many as it takes to see every prompt once. A stream needs it.

        Returns:
            `keras.callbacks.History`, every metric's mean per epoch.

        Raises:
            ValueError: for prompts that are empty, not text, or too long, or a reward that needs a column they lack.
            RewardError: if the reward fails. The trainer stays usable, as it was after the last step.
        """
        unsupported = sorted(name for name, value in kwargs.items() if value is not None)
        if unsupported:
            raise ValueError(
                f"`{type(self).__name__}.fit` takes prompts only; evaluate with `evaluate` or a callback. "
                f"Received: {', '.join(unsupported)}"
            )
        self._assert_compile_called("fit")
        callbacks = [callbacks] if isinstance(callbacks, keras.callbacks.Callback) else list(callbacks or [])
        check_callbacks(callbacks, [metric.name for metric in self.metrics], self.has_lora())
        self._build_optimizer()
        feed = self._open(x, batch_size, num_batches=steps_per_epoch, training=True, shuffle=shuffle, seed=self.seed)
        check_precision(self.trainable_variables, self.optimizer, updates=(epochs - initial_epoch) * len(feed))
        if not any(isinstance(c, keras.callbacks.ProgbarLogger) for c in callbacks):
            callbacks.append(ProgressBar())
        callbacks.append(Guards())
        callbacks.sort(key=lambda callback: hasattr(callback, "in_fit"))  # a checkpoint is of what all others have seen
        with self._feeding(feed), contextlib.ExitStack() as around, warnings.catch_warnings():
            for callback in callbacks:
                if hasattr(callback, "in_fit"):
                    around.enter_context(callback.in_fit(self, callbacks))
            warnings.filterwarnings("ignore", message="Your input ran out of data")  # a first epoch that goes on midway
            return super().fit(
                feed, epochs=epochs, verbose=verbose, callbacks=callbacks, shuffle=False, initial_epoch=initial_epoch
            )

    def evaluate(self, x=None, batch_size=32, verbose="auto", callbacks=None, return_dict=True, **kwargs):
        """The metrics of `fit` on other prompts, without an update: a dict of means over prompts.

        Training goes on afterwards as if there had been no evaluation. `grad_norm` and `anchor_distance` belong to updates
        and read 0. For win rate and KL against the reference with intervals see `keras_bond.evaluation.evaluate`.
        """
        feed = self._open(x, batch_size)
        callbacks = [*(callbacks or []), ProgressBar()]
        self.sync()
        with self._feeding(feed), self._restoring([*self._drawn_from(), *self.metrics_variables]):
            return super().evaluate(feed, verbose=verbose, callbacks=callbacks, return_dict=return_dict, **kwargs)

    def _open(self, prompts, batch_size, **settings):
        """A `Feed` of these prompts, after a look at all that can be wrong with them."""
        if not self.anchor.matches(self.policy.trainable_variables):
            raise ValueError(
                "The policy's trainable variables have changed since the trainer was made (by `enable_lora`, or by "
                "freezing layers). Do that first, then make the trainer."
            )
        with self.distributed():
            devices, _ = batch_devices()
            if settings.get("training"):
                check_rows(batch_size, "`batch_size`")
        fitting = self.rollout.fitting()
        feed = Feed(
            prompts,
            self.rollout.tokenize,
            fitting,
            batch_size,
            pad_id=self.rollout.tokenizer.pad_token_id,
            start=lambda: int(ops.convert_to_numpy(self.cursor.value)) if settings.get("training") else 0,
            multiple=devices,
            share=process_share(),
            **settings,
        )
        check_reward(self.reward, feed.columns)
        if report := fitting.report():
            warnings.warn(report, stacklevel=3)
        return feed

    # Saving.

    def get_config(self):
        return {
            "name": self.name,
            "policy": keras.saving.serialize_keras_object(self.policy),
            "reward": keras.saving.serialize_keras_object(self.reward),
            "num_samples": self.num_samples,
            "variance_reduction": self.variance_reduction,
            "microbatch_size": self.microbatch_size,
            "sampling_batch_size": self.rollout.sampling_batch_size,
            "max_prompt_length": self.rollout.max_prompt_length,
            "max_completion_length": self.rollout.max_completion_length,
            "long_prompts": self.rollout.long_prompts,
            "temperature": self.rollout.temperature,
            "stop_token_ids": list(self.rollout.stop_token_ids),
            "chat_template": keras.saving.serialize_keras_object(self.rollout.chat),
            "family": self.rollout.family.name,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        objects = {
            key: keras.saving.deserialize_keras_object(config[key], custom_objects=custom_objects)
            for key in ("policy", "reward", "anchor", "quantiles", "chat_template")
            if key in config
        }
        return cls(**{**config, **objects})

    def _build_optimizer(self):
        """Make the optimizer's variables now; made inside the first update, TensorFlow would compile that twice."""
        if not self.optimizer.built:
            with self.distributed():
                self.optimizer.build(self.trainable_variables)


def _check_sampler(sampler):
    name = sampler if isinstance(sampler, str) else type(sampler).__name__
    if name.lower() not in ("random", "randomsampler"):
        raise ValueError(
            '`sampler` must be "random" in training: the log-probabilities must be those of the distribution that is '
            "sampled from. Greedy samples of one prompt are all equal, so that no sample is best; top-k, top-p and beam "
            f"search sample from another distribution than the model's. Use `temperature`. Received: sampler={name!r}"
        )
