"""A progress bar that says whether the policy learns, and at what price."""

import keras

SHOWN = ("reward", "kl_reference", "win_rate", "kl_anchor", "completion_length")


class ProgressBar(keras.callbacks.ProgbarLogger):
    """Keras' progress bar, reduced to reward, KL (nats), win rate against the anchor, and length (tokens).

    All metrics still reach History, CSVLogger, TensorBoard and every other callback.
    """

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, _shown(logs))

    def on_test_batch_end(self, batch, logs=None):
        super().on_test_batch_end(batch, _shown(logs))

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, _shown(logs))

    def on_test_end(self, logs=None):
        super().on_test_end(_shown(logs))


def _shown(logs):
    return {name: logs[name] for name in SHOWN if name in (logs or {})}
