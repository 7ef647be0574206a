"""Torch: variables are read and written in place; the gradient is recorded once and replayed, see `rollout.Recorded`."""

import contextlib

import torch
from keras import ops

from keras_bond.rollout import Recorded, Trajectory, Weights, using
from keras_bond.trainers.backend.one_device import OneDevice


def gradient(function, value):
    """d function(value) / d value, of a scalar function of one tensor."""
    value = value.detach().requires_grad_()
    return torch.autograd.grad(function(value), value)[0]


class BackendTrainer(OneDevice):
    def compile(self, *args, **kwargs):
        super().compile(*args, **kwargs)
        self.rollout.jit_compile = self.jit_compile
        self._recorded_gradients = Recorded(self._gradients, jit_compile=lambda: self.jit_compile)

    def _should_torch_compile(self):
        """By Keras, a step with its Python: no. What was recorded is compiled, and that if `jit_compile` is true."""
        return False

    def _collect_before(self, step, observe=lambda trajectory: None):
        def function(data):
            ((places,),) = data
            trajectory = self.collect_or_restore(places)
            logs = step([(trajectory,)])
            observe(trajectory)
            return logs

        return function

    @torch.no_grad()
    def train_step(self, data):
        (trajectory,) = data
        variables = self.trainable_weights[:]
        whole = self.microbatch_size is None or self.microbatch_size >= trajectory.prompt_ids.shape[0]
        # a recording has every microbatch in it, one after the other
        gradients_of = self._recorded_gradients if whole and not self.run_eagerly else self._gradients
        fields = trajectory.map(ops.convert_to_tensor)._asdict()
        fields = {name: field for name, field in fields.items() if field is not None}
        scale = self.optimizer.scale_loss(torch.ones(()))
        gradients, logs = gradients_of([v.value for v in variables], fields, scale)
        updates = self.optimizer.iterations + 0  # a value, not the variable
        logs, sound = self.begin_update(logs, gradients, scale)
        if bool(sound):
            self.optimizer.apply(gradients, variables)
        return self.finish_update(logs, updates)

    def _gradients(self, trainable, fields, scale):
        eager = all(v.value is value for v, value in zip(self.trainable_variables, trainable, strict=True))
        with torch.enable_grad(), contextlib.nullcontext() if eager else self._using(trainable):
            loss, logs = self.loss_and_logs(Trajectory(**fields))
            gradients = torch.autograd.grad(loss * scale, trainable, allow_unused=True)
        return [*gradients], {name: value.detach() for name, value in logs.items()}

    @contextlib.contextmanager
    def _using(self, trainable):
        with using(self, Weights(trainable, [])) as scope:
            yield
        if len(scope.state_mapping) > len(trainable):
            raise RuntimeError("An objective that assigns a variable, a random seed say, cannot be recorded.")

    def test_step(self, data):
        (trajectory,) = data
        return self.track(self.loss_and_logs(trajectory)[1], weight=trajectory.rows())
