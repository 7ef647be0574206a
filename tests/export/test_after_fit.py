"""A policy that a trainer has wrapped and trained, as another process reads it with `transformers`."""

import json
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tiny
from test_export import IDS, close, our_logits

import keras_bond
from keras_bond import export

PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"

pytestmark = pytest.mark.any_backend


def test_what_a_trainer_has_trained(tmp_path):
    """The same logits and greedy text, of the trainer's policy after `fit`."""
    policy = tiny.causal_lm(lora=2, scale=0.2)
    trainer = keras_bond.JBOND(
        policy, tiny.letters_reward, max_prompt_length=4, max_completion_length=3, chat_template=PLAIN
    )
    trainer.compile(keras.optimizers.SGD(1.0))
    before = our_logits(policy, IDS)
    trainer.fit(["ab", "c", "b", "a"], batch_size=4, verbose=0)
    expected = our_logits(policy, IDS)
    assert np.abs(expected - before).max() > 1e-3
    export.to_transformers(trainer, tmp_path / "out")
    assert PLAIN in {path.read_text() for path in (tmp_path / "out").glob("*.jinja")}  # what it was trained with
    reader = [
        sys.executable,
        pathlib.Path(__file__).with_name("reader.py"),
        tmp_path / "out",
        json.dumps(IDS),
        "[2, 4, 5]",
        "6",
    ]
    read = subprocess.run(reader, capture_output=True, text=True, timeout=300)
    assert read.returncode == 0, read.stderr[-3000:]
    theirs = json.loads(read.stdout.splitlines()[-1])
    close(np.array(theirs["logits"]), expected)
    policy.compile(sampler="greedy")
    assert theirs["text"] == policy.generate("ab", max_length=9)
