"""Torch: variables are read and written in place; eager, with autograd."""

import torch

from keras_bond.trainers.backend.one_device import OneDevice


def gradient(function, value):
    """d function(value) / d value, of a scalar function of one tensor."""
    value = value.detach().requires_grad_()
    return torch.autograd.grad(function(value), value)[0]


class BackendTrainer(OneDevice):
    def _collect_before(self, step, observe=lambda trajectory: None):
        def function(data):
            ((rows,),) = data
            trajectory = self.collect_or_restore(rows)
            logs = step([(trajectory,)])
            observe(trajectory)
            return logs

        return function

    def train_step(self, data):
        (trajectory,) = data
        self.zero_grad()
        loss, logs = self.loss_and_logs(trajectory)
        scale = self.optimizer.scale_loss(torch.ones(()))
        (loss * scale).backward()
        variables = self.trainable_weights[:]
        gradients = [v.value.grad for v in variables]
        with torch.no_grad():
            updates = self.optimizer.iterations + 0  # a value, not the variable
            self.optimizer.apply(gradients, variables)
            return self.finish_update({k: v.detach() for k, v in logs.items()}, gradients, scale, updates)

    def test_step(self, data):
        (trajectory,) = data
        return self.track(self.loss_and_logs(trajectory)[1], weight=trajectory.reward.shape[0])
