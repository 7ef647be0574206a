"""The policy that is left when a run ends: the last one within a budget of KL, or the best."""

import collections
import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bond._checks import check_at_least, check_positive
from keras_bond.trainers.callback_checks import HIGHER_IS_BETTER, LOWER_IS_BETTER


class _Keeping(keras.callbacks.Callback):
    """Looks at a metric every so many updates, and at the end. Keeps the policy where a subclass says so, and puts it back
    at the end.

    Only the policy's trainable variables are kept and put back, in the host's memory: anchor and optimizer are as the last
    update left them.
    """

    def __init__(self, metric, every, window, evaluator):
        super().__init__()
        self.every, self.window = check_at_least(1, every=every, window=window)
        self.metric, self.evaluator = metric, evaluator
        self.kept_at: Any = None
        self.value: Any = None
        """The update after which the policy was kept, and the metric then; `None` where there is no such policy."""
        self._resumed: Any = None

    def on_train_begin(self, logs=None):
        names = [metric.name for metric in self.model.metrics]
        if self.evaluator is None and self.metric not in names:
            raise ValueError(f"`metric` must be one that `fit` logs: {', '.join(names)}. Received: metric={self.metric!r}")
        self._recent: collections.deque[float] = collections.deque(maxlen=self.window)
        self._updates = 0
        self.kept_at, self.value, self._kept = None, None, []
        if self._resumed is not None:
            (self._updates, self.kept_at, self.value, recent, self._kept), self._resumed = self._resumed, None
            self._recent.extend(recent)

    def on_train_batch_end(self, batch, logs=None):
        self._updates += 1
        self._recent.append(float(logs[self.metric]) if self.evaluator is None else math.nan)
        if self._updates % self.every == 0:
            self._look()

    def _look(self):
        if self.evaluator is None:
            value = float(np.mean(self._recent))
        else:
            self.model.sync()
            value = float(self.evaluator().estimates[self.metric].value)
        if self.judge(value):
            self.model.sync()
            self.kept_at, self.value = self._updates, value
            self._kept = [np.array(ops.convert_to_numpy(v.value)) for v in self.model.policy.trainable_variables]

    def judge(self, value):
        """Whether the policy is kept now."""
        raise NotImplementedError

    def on_train_end(self, logs=None):
        if self._updates % self.every:  # the last updates have not been looked at
            self._look()
        if self.kept_at is not None:
            for variable, value in zip(self.model.policy.trainable_variables, self._kept, strict=True):
                variable.assign(value)

    # For `Checkpoint`.

    def state(self, folder):
        kept = {f"{i:04d}": array for i, array in enumerate(self._kept)}
        numbers = {"updates": self._updates, "kept_at": self.kept_at, "value": self.value, "recent": list(self._recent)}
        return numbers | kept

    def resume(self, state, folder):
        kept = [state[name] for name in sorted(state) if name.isdigit()]
        self._resumed = *(state[name] for name in ("updates", "kept_at", "value", "recent")), kept


class KLBudget(_Keeping):
    """Stops a run when its KL to the reference reaches a budget, and leaves the last policy that was within it.

    The KL is `kl_reference`, the mean of log pi(y)/pi_ref(y) over the samples of the last `window` updates, which lags by
    about half of them; or, with an `evaluator`, the held-out KL, exact per token along each sample.

    Args:
        nats: > 0, KL(pi || pi_ref) of a whole completion.
        evaluator: a `keras_bond.evaluation.Evaluator` of the trainer's policy, made before `fit`; `None` for the logs.
        every: updates between two looks, at least 1.
        window: updates whose mean is looked at; 1 with noise, more with a lag. An evaluator needs none.

    After `fit`, `kept_at` is the update whose policy was left, and `value` its KL, in nats; both are `None` where the first
    look was beyond the budget already: then the policy is as the last update left it.

    Example:

    ```python
    trainer.fit(prompts, callbacks=[keras_bond.callbacks.KLBudget(0.5)])
    ```
    """

    def __init__(self, nats, evaluator=None, every=10, window=20):
        super().__init__("kl_reference" if evaluator is None else "kl", every, window, evaluator)
        self.nats = check_positive(nats=nats)

    def judge(self, value):
        if value <= self.nats:
            return True
        self.model.stop_training = True
        where = f"goes back to update {self.kept_at}, {self.value:.3f} nats" if self.kept_at else "stays: no look was within"
        if self.params.get("verbose"):
            print(f"\n`KLBudget`: {value:.3f} nats after {self._updates} updates, of {self.nats:g}. The policy {where}.")
        return False


class KeepBest(_Keeping):
    """Leaves the policy of the best value of a metric, rather than the last one.

    Args:
        metric: that `fit` logs, of which the mean of the last `window` updates counts; or, with an `evaluator`, one of the
            estimates of `keras_bond.evaluation.evaluate`, such as `"win_rate"`.
        mode: `"max"`, `"min"`, or `"auto"` where it is known which is better.
        evaluator: a `keras_bond.evaluation.Evaluator` of the trainer's policy, made before `fit`; `None` for the logs.
        every: updates between two looks, at least 1.
        window: updates whose mean is looked at.

    After `fit`, `kept_at` is the update whose policy was left, and `value` the metric then.

    Raises:
        ValueError: if it is not known which value is better; or, when `fit` begins, if no such metric is logged.

    Example:

    ```python
    trainer.fit(prompts, callbacks=[keras_bond.callbacks.KeepBest("win_rate", evaluator=evaluator, every=25)])
    ```
    """

    def __init__(self, metric, mode="auto", evaluator=None, every=10, window=20):
        super().__init__(metric, every, window, evaluator)
        higher, lower = (*HIGHER_IS_BETTER, "frontier_efficiency", "kl_efficiency"), (*LOWER_IS_BETTER, "kl")
        if mode == "auto" and metric in (*higher, *lower):
            mode = "max" if metric in higher else "min"
        if mode not in ("max", "min"):
            raise ValueError(f'`mode` must say with "max" or "min" which `{metric}` is better. Received: mode={mode!r}')
        self.mode = mode

    def judge(self, value):
        if math.isnan(value):
            return False
        return self.value is None or (value > self.value if self.mode == "max" else value < self.value)
