"""A policy that a trainer has wrapped and trained, as `transformers` reads it."""

import keras
import numpy as np
import pytest
import tiny
import torch
import transformers
from test_export import IDS, close, our_logits, their_logits

import keras_bond
from keras_bond import export

pytestmark = pytest.mark.any_backend


def test_what_a_trainer_has_trained(tmp_path):
    """The same greedy text, of the trainer's policy after `fit`."""
    policy = tiny.causal_lm(lora=2, scale=0.2)
    trainer = keras_bond.JBOND(policy, tiny.letters_reward, max_prompt_length=4, max_completion_length=3)
    trainer.compile(keras.optimizers.SGD(1.0))
    before = our_logits(policy, IDS)
    trainer.fit(["ab", "c", "b", "a"], batch_size=4, verbose=0)
    expected = our_logits(policy, IDS)
    assert np.abs(expected - before).max() > 1e-3
    export.to_transformers(trainer, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path / "out"), dtype="float32")
    close(their_logits(theirs, IDS), expected)
    ids = torch.tensor([[2, 4, 5]])
    written = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    policy.compile(sampler="greedy")
    assert tokenizer.decode(written[0], skip_special_tokens=True) == policy.generate("ab", max_length=9)
