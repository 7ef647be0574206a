"""What would go wrong in silence: each guard stops a run, or warns once, with what to do."""

import math
import warnings
import zlib

import keras
import numpy as np
from keras import ops

PATIENCE = 5
"""Updates after which what has not happened yet is worth a word."""

SAMPLE = 2**18
"""Weights of a variable that are looked at."""

_STEP_IS_THE_RATE = (
    keras.optimizers.Adam,
    keras.optimizers.Adamax,
    keras.optimizers.Lion,
    keras.optimizers.Nadam,
    keras.optimizers.RMSprop,
)
"""Optimizers that divide a gradient by its size, so that no weight moves by more than about the learning rate."""


class NotFiniteError(FloatingPointError):
    """A loss or a gradient was infinite or not a number. The update that it belongs to was not made."""


def inner(optimizer):
    """The optimizer that makes the step, inside the one that scales the loss."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def with_loss_scaling(optimizer, policy):
    """`optimizer`; for a policy that computes in float16, where small gradients are 0, within a `LossScaleOptimizer`."""
    half = any(keras.backend.standardize_dtype(layer.compute_dtype) == "float16" for layer in policy._flatten_layers())
    if not half or isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale_optimizer")


def check_precision(variables, optimizer, updates):
    """Refuse a run whose steps are lost to rounding: those of Adam and its like are known before the first one.

    A weight w of b bits of mantissa moves only by steps of at least half its spacing, 2^(floor(log2 |w|) - b - 1). In
    bfloat16 (b = 7) that is 0.2 to 0.4 % of |w|: a weight of 0.02 does not move at a learning rate of 3e-5.

    Args:
        variables: the trainable variables.
        optimizer: a built optimizer.
        updates: how many are to come.

    Raises:
        ValueError: if less than a tenth of the weights can move.
    """
    optimizer = inner(optimizer)
    narrow = _narrow(variables)
    if not narrow or not isinstance(optimizer, _STEP_IS_THE_RATE):
        return
    rate = largest_rate(optimizer, updates)
    stuck = np.concatenate([_spacing(variable) / 2 > rate for variable in narrow])
    share, dtype = stuck.mean(), narrow[0].dtype
    message = (
        f"{share:.0%} of the trained weights are {dtype} and cannot move: the largest learning rate of this run, "
        f"{rate:.2g}, is below half the distance to the next {dtype} number, and every step rounds away. Load the policy "
        'with `dtype="mixed_bfloat16"`, which computes in bfloat16 and keeps the weights in float32; or train LoRA; or '
        "raise the learning rate."
    )
    if share > 0.9:
        raise ValueError(message)
    if share > 0.5:
        warnings.warn(message, stacklevel=4)


def largest_rate(optimizer, updates):
    """The largest learning rate among the coming updates, looked at in 64 places."""
    schedule = optimizer._learning_rate
    if not isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        return float(ops.convert_to_numpy(optimizer.learning_rate))
    first = int(ops.convert_to_numpy(optimizer._iterations.value))
    places = np.unique(np.linspace(first, first + max(updates - 1, 0), 64).astype("int64"))
    return max(float(ops.convert_to_numpy(schedule(ops.convert_to_tensor(place, "int32")))) for place in places)


class Guards(keras.callbacks.Callback):
    """Looks at the logs of every update; part of every `fit`.

    Raises:
        NotFiniteError: if the loss or the gradient is not finite. Of a scaled loss the gradients may overflow.
        ValueError: if after the first `PATIENCE` updates not one narrow weight has changed.
    """

    def on_train_begin(self, logs=None):
        self._steps, self._tied, self._truncated, self._silent = 0, True, True, True
        optimizer = inner(self.model.optimizer)
        self._narrow = [] if isinstance(optimizer, _STEP_IS_THE_RATE) else _narrow(self.model.trainable_variables)
        self._digest = _digest(self._narrow)

    def on_train_batch_end(self, batch, logs=None):
        logs = {name: float(value) for name, value in logs.items()}
        self._steps += 1
        scaled = isinstance(self.model.optimizer, keras.optimizers.LossScaleOptimizer)
        watched = ("kl_reference", "loss", *(() if scaled else ("grad_norm",)))
        if wrong := [name for name in watched if not math.isfinite(logs[name])]:
            self._stop(wrong[0], logs)
        self._silent = self._silent and logs["abstained"] == 1.0
        self._tied = self._tied and logs.get("tie_rate", 0.0) == 1.0
        self._truncated = self._truncated and logs["truncated"] == 1.0
        if self._steps == PATIENCE * (inner(self.model.optimizer).gradient_accumulation_steps or 1):
            self._look_back()

    def _stop(self, name, logs):
        self.model.sync()
        whole = all(bool(ops.all(ops.isfinite(v.value))) for v in self.model.policy.trainable_variables)
        state = (
            "This update was not made: the trainer is as it was before it."
            if whole
            else "The policy's weights are not finite either: an earlier update has spoilt them. Go back to a checkpoint."
        )
        raise NotFiniteError(
            f"`{name}` is {logs[name]} at update {self._steps} of this `fit`. {state} Lower the learning rate, or clip the "
            "gradient with the optimizer's `global_clipnorm`. Received: "
            + ", ".join(f"{key}={logs[key]:.4g}" for key in ("kl_reference", "loss", "grad_norm"))
        )

    def _look_back(self):
        if self._silent:
            warnings.warn(
                f"The reward has abstained from every completion of the first {self._steps} steps: it answered `None`, and "
                "nothing can be learned from that. Look at what it is given: prompts, completions and columns.",
                stacklevel=2,
            )
        if self._tied:
            warnings.warn(
                f"All rewards of the first {self._steps} steps are tied: every completion of a prompt has the same reward, "
                "and nothing can be learned from that. Look at what the reward says of a few completions.",
                stacklevel=2,
            )
        if self._truncated:
            warnings.warn(
                f"No completion of the first {self._steps} steps has ended: all are cut after `max_completion_length`="
                f"{self.model.rollout.max_completion_length} tokens. Raise it, or pass the `stop_token_ids` with which this "
                f"model ends its turn. Now they are {list(self.model.rollout.stop_token_ids)}.",
                stacklevel=2,
            )
        if self._narrow:
            self.model.sync()
            if _digest(self._narrow) == self._digest:
                raise ValueError(
                    f"Not one of the trained weights has changed in {self._steps} steps: they are {self._narrow[0].dtype}, "
                    'and every step rounds away. Load the policy with `dtype="mixed_bfloat16"`, which keeps the weights in '
                    "float32; or train LoRA; or raise the learning rate."
                )


def _narrow(variables):
    return [v for v in variables if keras.backend.standardize_dtype(v.dtype) in ("bfloat16", "float16")]


def _spacing(variable):
    """The distance to the next number of up to `SAMPLE` of a variable's weights: 2^(floor(log2 |w|) - bits)."""
    values = ops.reshape(variable.value, (-1,))
    values = ops.convert_to_numpy(ops.cast(values[:: -(-values.shape[0] // SAMPLE)], "float32"))
    bits = {"bfloat16": 7, "float16": 10}[keras.backend.standardize_dtype(variable.dtype)]
    _, exponent = np.frexp(values)  # |w| = f 2^exponent, 1/2 <= f < 1
    return np.where(values == 0, 0.0, np.ldexp(1.0, exponent - 1 - bits))


def _digest(variables):
    return [zlib.crc32(ops.convert_to_numpy(ops.cast(v.value, "float32")).tobytes()) for v in variables]
