"""TensorFlow: variables are read and written in place; the update is one compiled `tf.function`."""

from typing import Any

import keras
import tensorflow as tf


class BackendTrainer(keras.Model):
    train_function: Any
    test_function: Any

    def make_train_function(self, force=False):
        if self.train_function is None or force:
            super().make_train_function(force=force)
            self.train_function = self._collect_before(self.train_function)

    def make_test_function(self, force=False):
        if self.test_function is None or force:
            super().make_test_function(force=force)
            self.test_function = self._collect_before(self.test_function)

    def sync(self):
        """Variables always hold their present values here."""

    def _collect_before(self, step):
        def function(iterator):
            (rows,) = next(iterator)
            return step(iter([(self.collect(rows, self.draw(rows.shape[0])),)]))

        return function

    def train_step(self, data):
        (trajectory,) = data
        with tf.GradientTape() as tape:
            loss, logs = self.loss_and_logs(trajectory)
            scale = self.optimizer.scale_loss(tf.ones(()))
            scaled = loss * scale
        gradients = tape.gradient(scaled, self.trainable_weights)
        updates = self.optimizer.iterations + 0  # a value, not the variable
        self.optimizer.apply(gradients, self.trainable_weights)
        return self.finish_update(logs, [tf.convert_to_tensor(g) for g in gradients], scale, updates)

    def test_step(self, data):
        (trajectory,) = data
        return self.track(self.loss_and_logs(trajectory)[1])
