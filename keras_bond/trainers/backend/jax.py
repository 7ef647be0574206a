"""JAX: the state is an argument. During `fit` the variables are empty, and every piece is given their values."""

import jax
import jax.numpy as jnp
import keras
import numpy as np

from keras_bond.rollout import spread_rows
from keras_bond.trainers.backend.one_device import OneDevice


def gradient(function, value):
    """d function(value) / d value, of a scalar function of one tensor."""
    return jax.grad(function)(value)


def rows_here(value):
    """The rows of a batch that this process holds, as a NumPy array; all of them where there is one process."""
    if not isinstance(value, jax.Array) or value.is_fully_addressable:
        return np.asarray(value)
    shards = {shard.index[0].start or 0: shard.data for shard in spread_rows(value).addressable_shards}
    return np.concatenate([shards[start] for start in sorted(shards)])


def rows_spread(value):
    """A batch with its rows spread over the devices of all processes, of which this one gives its own."""
    if jax.process_count() == 1 or not getattr(value, "is_fully_addressable", True):
        return spread_rows(value)
    value = np.asarray(value)
    layout = keras.distribution.distribution().get_data_layout(value.shape)
    return jax.make_array_from_process_local_data(layout.backend_layout, value)


class BackendTrainer(OneDevice):
    def sync(self):
        """Give the variables their present values, for a callback that reads them between two steps."""
        self.jax_state_sync()

    def _collect_before(self, step, observe=lambda trajectory: None):
        def function(state, iterator):
            try:
                (places,) = next(iterator)
                trainable, non_trainable, *rest = state
                batch = self.take(places)
                with self._scope(trainable, non_trainable) as scope:
                    draw = self.draw(places.shape[0])
                trajectory = jax.tree.map(rows_spread, self.collect(batch, draw))
                del draw  # the anchor's weights in the policy's dtype: memory that the update may want
                non_trainable = [scope.get_current_value(v) for v in self.non_trainable_variables]
                logs, state = step((trainable, non_trainable, *rest), iter([(trajectory,)]))
                observe(trajectory)
                return logs, state
            except BaseException:
                self._attach(state)
                raise

        return function

    def evaluate(self, *args, **kwargs):
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self.jax_state_sync()  # also where a callback has failed
            self._jax_state = None

    def train_step(self, state, data):
        trainable, non_trainable, optimizer, metrics = state
        (trajectory,) = data

        def loss_fn(trainable):
            with self._scope(trainable, non_trainable, optimizer):
                loss, logs = self.loss_and_logs(trajectory)
                scale = self.optimizer.scale_loss(1.0)
            return loss * scale, (logs, scale)

        gradients, (logs, scale) = jax.grad(loss_fn, has_aux=True)(trainable)
        with self._scope(trainable, non_trainable, optimizer):
            updates = self.optimizer.iterations + 0  # a value, not the variable
        logs, sound = self.begin_update(logs, gradients, scale)
        stepped = self.optimizer.stateless_apply(optimizer, gradients, trainable)
        trainable, optimizer = jax.tree.map(lambda new, old: jnp.where(sound, new, old), stepped, (trainable, optimizer))
        trainable = jax.lax.optimization_barrier(trainable)  # the anchor follows the policy as bfloat16 has rounded it
        with self._scope(trainable, non_trainable, optimizer, metrics) as scope:
            logs = self.finish_update(logs, updates)
        return logs, self._state(scope, optimizer=True)

    def test_step(self, state, data):
        trainable, non_trainable, metrics = state
        (trajectory,) = data
        with self._scope(trainable, non_trainable, None, metrics) as scope:
            logs = self.track(self.loss_and_logs(trajectory)[1], weight=trajectory.rows())
        return logs, self._state(scope, optimizer=False)

    def _scope(self, trainable, non_trainable, optimizer=None, metrics=None):
        mapping = [
            *zip(self.trainable_variables, trainable, strict=True),
            *zip(self.non_trainable_variables, non_trainable, strict=True),
        ]
        if optimizer is not None:
            mapping += zip(self.optimizer.variables, optimizer, strict=True)
        if metrics is not None:
            mapping += zip(self.metrics_variables, metrics, strict=True)
        return keras.StatelessScope(state_mapping=mapping)

    def _state(self, scope, optimizer):
        groups = [self.trainable_variables, self.non_trainable_variables]
        groups += [self.optimizer.variables] if optimizer else []
        return tuple([scope.get_current_value(v) for v in group] for group in (*groups, self.metrics_variables))

    def _attach(self, state):
        """Give the variables their values back, so that the trainer is usable after an error."""
        trainable, non_trainable, *optimizer, metrics = state
        groups = [(self.trainable_variables, trainable), (self.non_trainable_variables, non_trainable)]
        groups += [(self.optimizer.variables, values) for values in optimizer]
        for variables, values in (*groups, (self.metrics_variables, metrics)):
            for variable, value in zip(variables, values, strict=True):
                if not value.is_deleted():  # a step that failed midway may have used up its arguments
                    variable.assign(value)
        self._jax_state_synced = True
