"""What is written can be read, and trained on."""

import keras
import numpy as np
import pytest
import tiny
from keras import ops

from keras_bond import JBOND
from keras_bond.anchors import PeriodicAnchor
from keras_bond.rewards import VaderSentiment

PROMPTS = ["ab", "c", "bca", "aab", "cc"]


def trainer_of(lora=None, seed=0, **kwargs):
    trainer = JBOND(
        tiny.causal_lm(lora=lora, seed=seed), tiny.letters_reward, max_prompt_length=8, max_completion_length=4, **kwargs
    )
    trainer.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    return trainer


def values(variables):
    return [ops.convert_to_numpy(v.value) + 0 for v in variables]


@pytest.mark.parametrize(
    ("lora", "orbax"),
    tiny.on_all_backends([(None, False), (2, True)], [(None, False), (2, False), (None, True), (2, True)]),
)
def test_a_run_continues_where_its_state_was_saved(tmp_path, lora, orbax):
    path = tmp_path / ("steps" if orbax else "state.h5")
    whole, half, rest = trainer_of(lora), trainer_of(lora), trainer_of(lora, seed=9)
    whole.fit(PROMPTS, batch_size=4, steps_per_epoch=6, verbose=0)
    callbacks = [keras.callbacks.OrbaxCheckpoint(path, save_freq=3)] if orbax else []
    half.fit(PROMPTS, batch_size=4, steps_per_epoch=3, verbose=0, callbacks=callbacks)
    if not orbax:
        half.save_weights(path)
    rest.load_weights(path)
    rest.fit(PROMPTS, batch_size=4, steps_per_epoch=3, verbose=0)
    for a, b in zip(values(whole.variables), values(rest.variables), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(rest.optimizer.iterations) == 6


def test_the_optimizers_state_waits_for_compile(tmp_path):
    whole = trainer_of()
    whole.fit(PROMPTS, batch_size=4, steps_per_epoch=3, verbose=0)
    whole.save_weights(tmp_path / "state.h5")
    rest = JBOND(tiny.causal_lm(seed=9), tiny.letters_reward, max_prompt_length=8, max_completion_length=4)
    rest.load_weights(tmp_path / "state.h5")
    with pytest.raises(ValueError, match="its optimizer_variables are"):
        rest.compile(keras.optimizers.Adam(0.1))
    rest.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    assert int(rest.optimizer.iterations) == 3
    for a, b in zip(values(whole.optimizer.variables), values(rest.optimizer.variables), strict=True):
        np.testing.assert_array_equal(a, b)
    rest.compile(keras.optimizers.SGD(0.1, momentum=0.9))  # anew, as Keras has it
    assert int(rest.optimizer.iterations) == 0


def test_saved_lora_keeps_its_gradients(tmp_path):
    trainer = trainer_of(lora=2)
    trainer.save_weights(tmp_path / "state.h5")
    other = trainer_of(lora=2, seed=3)
    other.load_weights(tmp_path / "state.h5")
    assert all(np.abs(v).max() > 0 for v in values(other.policy.trainable_variables))
    assert other.fit(PROMPTS, batch_size=8, verbose=0).history["grad_norm"][0] > 1e-3


def test_weights_of_another_trainer_are_refused(tmp_path):
    trainer_of(lora=2).save_weights(tmp_path / "state.h5")
    trainer = trainer_of(lora=3)
    start = values(trainer.variables)
    with pytest.raises(ValueError, match="does not fit this trainer"):
        trainer.load_weights(tmp_path / "state.h5")
    for a, b in zip(start, values(trainer.variables), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.any_backend
def test_config_and_keras_file_round_trip(tmp_path):
    trainer = JBOND(
        tiny.causal_lm(), VaderSentiment(), n=3, beta=0.25, eta=0.1, gamma=0.5, max_prompt_length=8, max_completion_length=4
    )
    trainer.compile(keras.optimizers.SGD(0.1))
    trainer.fit(PROMPTS, batch_size=4, verbose=0)
    trainer.save(tmp_path / "trainer.keras")
    loaded = keras.saving.load_model(tmp_path / "trainer.keras")
    config, again = trainer.get_config(), loaded.get_config()
    for name in ("n", "beta", "eta", "gamma", "max_prompt_length", "max_completion_length", "temperature", "seed"):
        assert config[name] == again[name]
    for a, b in zip(values(trainer.policy.variables), values(loaded.policy.variables), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(values(trainer.anchor.shadows), values(loaded.anchor.shadows), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.any_backend
def test_another_anchor_is_saved_and_comes_back(tmp_path):
    sizes = {"max_prompt_length": 8, "max_completion_length": 4}
    trainer = JBOND(tiny.causal_lm(), VaderSentiment(), anchor=PeriodicAnchor(2), **sizes)
    trainer.compile(keras.optimizers.SGD(0.1))
    trainer.fit(PROMPTS, batch_size=4, steps_per_epoch=3, verbose=0)
    assert int(trainer.anchor.updates) == 3
    trainer.save(tmp_path / "trainer.keras")
    loaded = keras.saving.load_model(tmp_path / "trainer.keras")
    assert isinstance(loaded.anchor, PeriodicAnchor)
    assert loaded.anchor.period == 2
    for a, b in zip(values(trainer.anchor.variables), values(loaded.anchor.variables), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_keras_file_of_a_lora_policy_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`save` cannot hold a policy with LoRA"):
        trainer_of(lora=2).save(tmp_path / "trainer.keras")
