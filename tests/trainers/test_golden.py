"""A dozen updates with fixed random numbers: all three backends must follow one recorded trajectory."""

import json
import pathlib
import sys

import keras
import numpy as np
import tiny
from scripted import make

FILE = pathlib.Path(__file__).with_name("golden.json")
LOGGED = ("reward", "anchor_reward", "kl_reference", "kl_anchor", "win_rate", "loss", "grad_norm", "anchor_distance")


def trajectory():
    policy = tiny.causal_lm(seed=11, scale=0.3)
    optimizer = keras.optimizers.SGD(0.001, momentum=0.9)
    trainer = make(policy, tiny.letters_reward, rng_seed=12, optimizer=optimizer, n=2, beta=0.4, eta=0.1, gamma=0.3)
    trainer.rollout.max_completion_length = 5
    rows = []
    step = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: rows.append([float(logs[name]) for name in LOGGED])
    )
    trainer.fit(["ab", "c", "ba"], batch_size=32, steps_per_epoch=12, verbose=0, callbacks=[step])
    return rows


def test_the_golden_trajectory():
    golden = json.loads(FILE.read_text())
    assert golden["logged"] == list(LOGGED)
    np.testing.assert_allclose(trajectory(), golden["steps"], rtol=1e-5, atol=1e-5)


if __name__ == "__main__":  # KERAS_BACKEND=jax python tests/trainers/test_golden.py --write
    assert sys.argv[1:] == ["--write"]
    FILE.write_text(json.dumps({"logged": LOGGED, "steps": [[round(v, 7) for v in row] for row in trajectory()]}) + "\n")
