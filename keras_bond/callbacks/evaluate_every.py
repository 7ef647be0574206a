"""Evaluation on held-out prompts during `fit`."""

import keras

from keras_bond._checks import check_at_least
from keras_bond.evaluation import load


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
        self._resumed = None

    def on_train_begin(self, logs=None):
        if self._resumed is not None:
            (self.results, self._updates), self._resumed = self._resumed, None
            return
        self.results, self._updates = [], 0
        self._evaluate()

    def on_train_batch_end(self, batch, logs=None):
        self._updates += 1
        if self._updates % self.every == 0:
            self.model.sync()
            self._evaluate()

    # For `Checkpoint`: each result is a file of its own, written once.

    def state(self, folder):
        for update, result in self.results:
            path = _path(folder, update)
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                result.save(path.with_suffix(".writing"))
                path.with_suffix(".writing").rename(path)
        return {"updates": self._updates, "results": [update for update, _ in self.results]}

    def resume(self, state, folder):
        ours = {"best_of_n": self.evaluator.best_of_n, "seed": self.evaluator.seed}
        results = [(update, load(_path(folder, update), **ours)) for update in state["results"]]
        self._resumed = results, state["updates"]

    def _evaluate(self):
        self.results.append((self._updates, self.evaluator()))


def _path(folder, update):
    return folder / "evaluations" / f"{update:08d}.csv"
