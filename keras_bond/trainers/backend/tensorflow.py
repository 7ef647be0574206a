"""TensorFlow: variables are read and written in place; the update is one compiled `tf.function`.

Under a `tf.distribute` strategy, `MirroredStrategy` say, each replica samples and scores its rows of a batch. The objective
is that of the whole batch: the replicas exchange scores, a few numbers a sample, and each computes the loss from all.
"""

import keras
import tensorflow as tf

from keras_bond.trainers.backend.one_device import OneDevice


def gradient(function, value):
    """d function(value) / d value, of a scalar function of one tensor."""
    with tf.GradientTape() as tape:
        tape.watch(value)
        result = function(value)
    return tf.convert_to_tensor(tape.gradient(result, value))


class BackendTrainer(OneDevice):
    def distributed(self):
        return self.distribute_strategy.scope()

    def compile(self, optimizer="adam", jit_compile="auto", **kwargs):
        if self.distribute_strategy.num_replicas_in_sync > 1:
            _check_made_by(self.distribute_strategy, policy=self.policy.variables[0].value)
            if isinstance(optimizer, keras.optimizers.Optimizer):
                _check_made_by(self.distribute_strategy, optimizer=optimizer.variables[0].value)
                if optimizer.gradient_accumulation_steps:
                    raise ValueError(
                        "`gradient_accumulation_steps` does not work under a `tf.distribute` strategy, where Keras cannot "
                        "accumulate. Use the trainer's `microbatch_size`, which is the same update in less memory."
                    )
            jit_compile = False  # XLA compiles for one device: `by_replica` has each compile its own part
        with self.distributed():
            super().compile(optimizer=optimizer, jit_compile=jit_compile, **kwargs)

    def _maybe_symbolic_build(self, *args, **kwargs):
        """Nothing is left to build. Under a strategy Keras would take a batch of prompts to find that out."""

    def by_replica(self, function, rows):
        context = tf.distribute.get_replica_context()
        count = context.num_replicas_in_sync
        if count == 1:
            return function(rows)
        compiled = function if self.run_eagerly else tf.function(function, jit_compile=True, autograph=False)
        mine = _map_tensors(lambda value: tf.stack(tf.split(value, count))[context.replica_id_in_sync_group], rows)
        return _map_tensors(lambda value: _gather(context, value), compiled(mine))

    def _collect_before(self, step, observe=lambda trajectory: None):
        def function(iterator):
            with self.distributed():
                (places,) = next(iterator)
                places = tf.concat(self.distribute_strategy.experimental_local_results(places), 0)
                trajectory = self.collect_or_restore(places)
                # with sizes as integers, TensorFlow keeps every shape known when another batch has other ones
                logs = step(iter([(trajectory, _sizes(trajectory))]))
                observe(trajectory)
                return logs

        return function

    def train_step(self, data):
        trajectory, _ = data
        with tf.GradientTape() as tape:
            loss, logs = self.loss_and_logs(trajectory)
            scale = self.optimizer.scale_loss(tf.ones(()))
            scaled = loss * scale
        gradients = tape.gradient(scaled, self.trainable_weights)
        gradients, own = _over_replicas(gradients)
        updates = self.optimizer.iterations + 0  # a value, not the variable
        logs, sound = self.begin_update(logs, gradients, scale)
        if tf.distribute.get_replica_context().num_replicas_in_sync > 1:  # where replicas meet there can be no condition
            self.optimizer.apply(own, self.trainable_weights)
        else:
            keras.ops.cond(sound, lambda: self.optimizer.apply(own, self.trainable_weights), lambda: None)
        return self.finish_update(logs, updates)

    def test_step(self, data):
        trajectory, _ = data
        return self.track(self.loss_and_logs(trajectory)[1], weight=trajectory.rows())


def _sizes(trajectory):
    return [size for array in tf.nest.flatten(trajectory) if array is not None for size in array.shape]


def _map_tensors(function, fields):
    """`fields`, a `NamedTuple`, with `function` of each field that is there."""
    return type(fields)(*(field if field is None else function(field) for field in fields))


def _gather(context, value):
    """The rows of all replicas; a gradient flows back to each from the loss of every replica."""
    rows, *shape = value.shape
    shape = (rows * context.num_replicas_in_sync, *shape)
    if 0 in shape:  # no contenders
        return tf.zeros(shape, value.dtype)
    return tf.ensure_shape(context.all_gather(value, axis=0), shape)


def _over_replicas(gradients):
    """(whole, own): the gradient of the whole batch, and what each replica gives Keras' optimizer, which adds them up.

    Every replica has the loss of the whole batch, so that what flowed back to its rows is the sum over all of them: the
    gradient is the replicas' mean. Only the first hands it to the optimizer, so that clipping by a norm sees it whole.
    """
    context = tf.distribute.get_replica_context()
    tensors = [tf.convert_to_tensor(g) for g in gradients if g is not None]
    if context.num_replicas_in_sync == 1:
        return tensors, gradients
    whole = iter(context.all_reduce(tf.distribute.ReduceOp.MEAN, tensors))
    whole = [g if g is None else next(whole) for g in gradients]
    first = tf.equal(context.replica_id_in_sync_group, 0)
    return [g for g in whole if g is not None], [g if g is None else tf.where(first, g, tf.zeros_like(g)) for g in whole]


def _check_made_by(strategy, **made):
    ((name, variable),) = made.items()
    if getattr(variable, "distribute_strategy", None) is not strategy:
        raise ValueError(
            f"`{name}` must be made under the strategy of the trainer: make policy, optimizer and trainer inside "
            f"`with strategy.scope():`. Received one that was made outside of this {type(strategy).__name__}."
        )
