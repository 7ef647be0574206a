"""A dozen updates with fixed random numbers: all three backends must follow one recorded trajectory."""

import itertools
import json
import pathlib
import sys

import keras
import numpy as np
import pytest
import tiny
from scripted import make

from keras_bond import BOND, JBOND, Reinforce
from keras_bond.ops import draw_tokens
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


MARGIN = 1e-4
"""How far at least every random number of the recorded runs is from where it would draw another token. Another processor, or
backend, moves a threshold by 1e-6: so all of them draw the same tokens, and what is compared differs by rounding alone."""


def trainer_of(name, lora=None, **more):
    algorithm, settings = RUNS[name]
    policy = tiny.causal_lm(seed=11, scale=0.3, lora=lora)
    optimizer = keras.optimizers.SGD(0.001, momentum=0.9)
    trainer = make(policy, tiny.letters_reward, optimizer=optimizer, algorithm=algorithm, **settings, **more)
    trainer.rollout.max_completion_length = 5
    return trainer


def trajectory(trainer, seed, steps=12):
    trainer.rng, rows = np.random.default_rng(seed), []
    step = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: rows.append([float(logs[name]) for name in LOGGED])
    )
    trainer.fit(["ab", "c", "ba"], batch_size=8, steps_per_epoch=steps, verbose=0, callbacks=[step])
    return rows


@pytest.mark.parametrize("name", RUNS)
def test_the_golden_trajectory(name):
    golden = json.loads(FILE.read_text())
    assert golden["logged"] == list(LOGGED)
    assert golden["margins"][name] > MARGIN
    np.testing.assert_allclose(trajectory(trainer_of(name), golden["seeds"][name]), golden[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lora", [None, 2])
def test_chunks_and_microbatches_make_the_same_updates(lora, monkeypatch):
    golden = json.loads(FILE.read_text())
    seed = golden["seeds"]["LoRA" if lora else "JBOND"]
    whole = trajectory(trainer_of("JBOND", lora), seed, 3) if lora else golden["JBOND"][:3]
    monkeypatch.setattr(rollout, "LOGITS_AT_ONCE", 1)  # a position at a time
    parts = trajectory(trainer_of("JBOND", lora, microbatch_size=4, sampling_batch_size=2), seed, 3)
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-5)


def recorded(name, lora=None, steps=12):
    """(seed, margin, rows) of the first seed whose numbers keep their distance: by trial, from the same state each time."""
    import jax

    trainer, margins = trainer_of(name, lora), []

    def watched(logits, uniforms, temperature):
        jax.debug.callback(lambda *drawn: margins.append(margin(*drawn)), logits, uniforms)
        return draw_tokens(logits, uniforms, temperature)

    def margin(logits, uniforms):
        weights = np.exp(np.asarray(logits, "float64"))
        thresholds = np.cumsum(weights, axis=1)[:, :-1] / weights.sum(axis=1, keepdims=True)
        return np.abs(thresholds - np.asarray(uniforms, "float64")[:, None]).min()

    trainer.rollout._draw = watched
    trainer._build_optimizer()
    start = {
        group: {place: np.array(v) for place, v in values.items()} for group, values in trainer.get_state_tree().items()
    }
    for seed in itertools.count():
        trainer.set_state_tree(start)
        margins.clear()
        rows = trajectory(trainer, seed, steps)
        jax.effects_barrier()
        if min(margins) > MARGIN:
            return seed, float(min(margins)), rows


if __name__ == "__main__":  # KERAS_BACKEND=jax PYTHONPATH=tests:tests/trainers python tests/trainers/test_golden.py --write
    assert sys.argv[1:] == ["--write"]
    golden = {"logged": LOGGED, "seeds": {"LoRA": recorded("JBOND", 2, 3)[0]}, "margins": {}}
    for name in RUNS:
        golden["seeds"][name], golden["margins"][name], rows = recorded(name)
        golden[name] = [[round(v, 7) for v in row] for row in rows]
    FILE.write_text(json.dumps(golden) + "\n")
