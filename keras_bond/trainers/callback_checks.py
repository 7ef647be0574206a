"""Keras' callbacks that would fail when an epoch's work is done: each is made to work, or refused before the first step."""

import importlib.util

import keras

MONITORS = (
    keras.callbacks.EarlyStopping,
    keras.callbacks.ReduceLROnPlateau,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.OrbaxCheckpoint,
)
HIGHER_IS_BETTER = ("reward", "anchor_reward", "win_rate", "log_quantile", "return")
LOWER_IS_BETTER = ("loss", "kl_reference", "kl_anchor", "penalised", "truncated", "abstained")


def check_callbacks(callbacks, metrics, has_lora):
    """Look at what Keras' callbacks ask of a trainer, and tell those that monitor a metric which way is better.

    Args:
        callbacks: list of callbacks.
        metrics: names of the trainer's metrics.
        has_lora: whether the policy has LoRA.

    Raises:
        ValueError: if a callback monitors what is not logged, or in a direction that nobody knows; or if it would save a
            policy with LoRA in a file that cannot hold it.
        ImportError: if TensorBoard is asked for and not installed.
    """
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.TensorBoard) and importlib.util.find_spec("tensorboard") is None:
            raise ImportError("`keras.callbacks.TensorBoard` needs the package: pip install 'keras-bond[tensorboard]'")
        if isinstance(callback, keras.callbacks.ModelCheckpoint) and has_lora and not callback.save_weights_only:
            raise ValueError(
                "`ModelCheckpoint` cannot save a policy with LoRA whole: a `.keras` file would merge the adapter, and the "
                "copy could never be trained on. Pass `save_weights_only=True` and a name that ends in `.weights.h5`. "
                f"Received: filepath={callback.filepath!r}"
            )
        if isinstance(callback, MONITORS) and getattr(callback, "save_best_only", True):
            _check_monitor(callback, metrics)


def _check_monitor(callback, metrics):
    name = callback.monitor
    if name not in metrics:
        hint = " `fit` takes no validation data." if name.startswith("val_") else ""
        raise ValueError(
            f"`{type(callback).__name__}` must monitor a metric that `fit` logs: {', '.join(metrics)}.{hint} "
            f"Received: monitor={name!r}"
        )
    if callback.mode != "auto" or callback.monitor_op is not None:
        return
    if name not in (*HIGHER_IS_BETTER, *LOWER_IS_BETTER):
        raise ValueError(
            f'`{type(callback).__name__}` must be told with `mode="max"` or "min" which `{name}` is better. '
            f"Received: mode={callback.mode!r}"
        )
    callback.mode = "max" if name in HIGHER_IS_BETTER else "min"
