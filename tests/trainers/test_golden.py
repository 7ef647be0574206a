"""A dozen updates with fixed random numbers: all three backends must follow one recorded trajectory."""

import json
import pathlib
import sys

import keras
import numpy as np
import pytest
import tiny
from scripted import make

from keras_bond import BOND, JBOND, Reinforce
from keras_bond.quantiles import MonteCarlo
from keras_bond.rollout import rollout

FILE = pathlib.Path(__file__).with_name("golden.json")
LOGGED = ("reward", "kl_reference", "kl_anchor", "loss", "grad_norm", "anchor_distance")
RUNS = {
    "JBOND": (JBOND, {"n": 2, "beta": 0.4, "eta": 0.1, "gamma": 0.3, "num_anchor_samples": 3}),
    "JBOND, plain": (JBOND, {"n": 2, "beta": 0.4, "eta": 0.1, "gamma": 0.3, "variance_reduction": False}),
    "BOND, plain": (
        BOND,
        {"n": 3, "beta": 0.4, "quantiles": MonteCarlo(4), "exact_ties": True, "variance_reduction": False},
    ),
    "Reinforce": (Reinforce, {"beta_rl": 0.1}),
}


def trajectory(name, steps=12, lora=None, **more):
    algorithm, settings = RUNS[name]
    settings = settings | more
    policy = tiny.causal_lm(seed=11, scale=0.3, lora=lora)
    optimizer = keras.optimizers.SGD(0.001, momentum=0.9)
    trainer = make(policy, tiny.letters_reward, rng_seed=12, optimizer=optimizer, algorithm=algorithm, **settings)
    trainer.rollout.max_completion_length = 5
    rows = []
    step = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: rows.append([float(logs[name]) for name in LOGGED])
    )
    trainer.fit(["ab", "c", "ba"], batch_size=32, steps_per_epoch=steps, verbose=0, callbacks=[step])
    return rows


@pytest.mark.parametrize("name", RUNS)
def test_the_golden_trajectory(name):
    golden = json.loads(FILE.read_text())
    assert golden["logged"] == list(LOGGED)
    np.testing.assert_allclose(trajectory(name), golden[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lora", [None, 2])
def test_chunks_and_microbatches_make_the_same_updates(lora, monkeypatch):
    whole = trajectory("JBOND", 3, lora) if lora else json.loads(FILE.read_text())["JBOND"][:3]
    monkeypatch.setattr(rollout, "LOGITS_AT_ONCE", 1)  # a position at a time
    parts = trajectory("JBOND", 3, lora, microbatch_size=16, sampling_batch_size=8)
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-5)


if __name__ == "__main__":  # KERAS_BACKEND=jax python tests/trainers/test_golden.py --write
    assert sys.argv[1:] == ["--write"]
    runs = {name: [[round(v, 7) for v in row] for row in trajectory(name)] for name in RUNS}
    FILE.write_text(json.dumps({"logged": LOGGED, **runs}) + "\n")
