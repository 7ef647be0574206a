"""J-BOND trains models of every kind, fast families and the generic one, with LoRA or without."""

import hub
import keras
import numpy as np
import pytest
import tiny

import keras_bond


@pytest.mark.parametrize(
    ("kind", "lora"),
    [
        ("llama3", 2),
        ("qwen2.5", None),
        ("gpt2", 2),
        ("qwen3_moe", None),
    ],
)
def test_jbond_trains_it(kind, lora):
    policy = hub.causal_lm(kind, lora=lora)
    trainer = keras_bond.JBOND(policy, tiny.letters_reward, max_prompt_length=8, max_completion_length=4)
    trainer.compile(optimizer=keras.optimizers.Adam(1e-2))
    before = [keras.ops.convert_to_numpy(v) for v in policy.trainable_variables]
    history = trainer.fit(["ab", "c", "abc", "b"], batch_size=4, epochs=2, verbose=0).history
    assert np.isfinite([*history["kl_reference"], *history["kl_anchor"], *history["grad_norm"]]).all()
    assert max(np.abs(history["kl_reference"])) > 0
    moved = [
        np.abs(keras.ops.convert_to_numpy(v) - old).max() for v, old in zip(policy.trainable_variables, before, strict=True)
    ]
    assert max(moved) > 1e-3
