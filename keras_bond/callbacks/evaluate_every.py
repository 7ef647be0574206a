"""Evaluation on held-out prompts during `fit`."""

import keras

from keras_bond._checks import check_at_least


class EvaluateEvery(keras.callbacks.Callback):
    """Evaluates before the first and after every `every`-th update.

    The evaluation has random numbers of its own: the training run is the same with and without it.

    Args:
        evaluator: a `keras_bond.evaluation.Evaluator` of the trainer's policy.
        every: updates between two evaluations, at least 1.

    The results are in `results`, a list of (update, `Evaluation`).
    """

    def __init__(self, evaluator, every):
        super().__init__()
        self.evaluator, self.every = evaluator, check_at_least(1, every=every)
        self.results = []

    def on_train_begin(self, logs=None):
        self.results, self._updates = [], 0
        self._evaluate()

    def on_train_batch_end(self, batch, logs=None):
        self._updates += 1
        if self._updates % self.every == 0:
            self.model.sync()
            self._evaluate()

    def _evaluate(self):
        self.results.append((self._updates, self.evaluator()))
