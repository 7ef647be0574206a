"""Keras' callbacks with `fit`: they work, or are refused before the first step."""

import importlib.util

import keras
import pytest
import tiny

from keras_bond import JBOND

pytestmark = pytest.mark.any_backend

PROMPTS = ["ab", "c", "bca"]
callbacks = keras.callbacks


def trainer_of(lora=None, reward=tiny.letters_reward):
    trainer = JBOND(tiny.causal_lm(lora=lora), reward, max_prompt_length=8, max_completion_length=4)
    trainer.compile(keras.optimizers.SGD(0.05))
    return trainer


def untouched(prompts, completions):
    raise AssertionError("a completion was sampled")


@pytest.mark.parametrize(
    ("lora", "callback", "message"),
    [
        (2, callbacks.ModelCheckpoint("m.keras"), r"cannot save a policy with LoRA whole.*Received: filepath='m.keras'"),
        (None, callbacks.EarlyStopping(monitor="val_loss"), r"takes no validation data. Received: monitor='val_loss'"),
        (None, callbacks.EarlyStopping(monitor="rewards"), r"must monitor a metric that `fit` logs: reward, .*'rewards'"),
        (None, callbacks.ReduceLROnPlateau(), r"Received: monitor='val_loss'"),
        (None, callbacks.ModelCheckpoint("m.keras", save_best_only=True), r"Received: monitor='val_loss'"),
        (None, callbacks.EarlyStopping(monitor="completion_length"), r'must be told with `mode="max"` or "min"'),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(lora, callback, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(lora, untouched).fit(PROMPTS, batch_size=4, verbose=0, callbacks=callback)


def test_tensorboard_names_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'keras-bond\[tensorboard\]'"):
        trainer_of(reward=untouched).fit(PROMPTS, verbose=0, callbacks=[callbacks.TensorBoard(str(tmp_path))])


def test_a_metric_knows_which_way_is_better(tmp_path):
    """Keras knows that of its own metrics alone, and says so when the first epoch's work is done."""
    higher, lower = callbacks.EarlyStopping(monitor="reward", patience=9), callbacks.ReduceLROnPlateau("kl_reference")
    best = callbacks.ModelCheckpoint(
        str(tmp_path / "m.weights.h5"), monitor="win_rate", save_best_only=True, save_weights_only=True
    )
    logger = callbacks.CSVLogger(str(tmp_path / "log.csv"))
    trainer_of().fit(PROMPTS, batch_size=4, epochs=2, verbose=0, callbacks=[higher, lower, best, logger])
    assert (higher.mode, lower.mode, best.mode) == ("max", "min", "max")
    assert (tmp_path / "m.weights.h5").is_file()
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 3
