"""A run that is killed at a random moment and started again, against one that was left alone.

    python faults.py --runs 20 --backend jax            # SIGKILL, all of the embedding
    python faults.py --runs 20 --lora 8                 # the adapter alone
    python faults.py --runs 5 --signal TERM --backend torch

Each run is the demo's: J-BOND on the bundled model. It logs every step, and writes a checkpoint every `--every` of them.
Once it has logged a step drawn at random, it is killed after a random part of a step more: while it samples, updates or
writes.
Then the same command is started again, and goes on. At the end policy, anchor, optimizer, seeds and cursor, the rows of the
log, and samples of the policy are compared: bit by bit, and by their largest difference.
"""

import argparse
import csv
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time


def worker(folder, steps, every, lora, seed):
    """One process of the run; it goes on from the folder's newest checkpoint."""

    import keras_bond
    from keras_bond import presets
    from keras_bond.experiments.align import PRESET, bundled_trainer, of_the_embedding
    from keras_bond.experiments.demo import BATCH_SIZE, OPTIMIZER, SETTINGS

    def with_lora(policy, reward, **settings):
        policy.backbone.enable_lora(lora)
        return keras_bond.JBOND(policy, reward, **settings)

    algorithm = with_lora if lora else of_the_embedding(keras_bond.JBOND)
    trainer = bundled_trainer(algorithm, seed, **({} if lora else OPTIMIZER), **SETTINGS)
    callbacks = [
        keras_bond.callbacks.StepLogger(folder / "steps.csv"),
        keras_bond.callbacks.Checkpoint(folder / "run", every=every),
    ]
    trainer.fit(
        presets.prompts(PRESET, "train"), batch_size=BATCH_SIZE, epochs=2, steps_per_epoch=steps // 2, verbose=0,
        callbacks=callbacks,
    )  # fmt: skip
    sampler = keras_bond.BestOfNSampler(trainer.policy, trainer.reward, 1, rollout=trainer.rollout, seed=seed)
    samples = sampler.generate(presets.prompts(PRESET, "test")[:64], verbose=0).completions
    (folder / "samples.json").write_text(json.dumps(samples))


def rows_of(folder):
    path = folder / "steps.csv"
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [*csv.DictReader(file)]


def start(arguments, folder):
    command = [sys.executable, __file__, "--worker", str(folder), "--steps", str(arguments.steps)]
    command += ["--every", str(arguments.every), "--lora", str(arguments.lora), "--seed", str(arguments.seed)]
    environment = {**os.environ, "KERAS_BACKEND": arguments.backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finished(process, folder):
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the run in {folder} ended with status {process.returncode}: {errors[-2000:]}")
    return folder


def result(folder):
    """(arrays, rows, samples) of a run that has ended."""
    from safetensors.numpy import load_file

    newest = sorted((folder / "run").glob("step-*"))[-1]
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in rows_of(folder)]
    return load_file(newest / "state.safetensors"), rows, json.loads((folder / "samples.json").read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--backend", default="jax", choices=("jax", "tensorflow", "torch"))
    parser.add_argument("--signal", default="KILL", choices=("KILL", "TERM"))
    parser.add_argument("--lora", type=int, default=0, help="rank; 0 trains the embedding, as the demo does")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="", help="a file of JSON lines that the result is added to")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(pathlib.Path(arguments.worker), arguments.steps, arguments.every, arguments.lora, arguments.seed)
        return
    import numpy as np
    from common import provenance

    chance, alike, largest, moments = random.Random(arguments.seed), 0, 0.0, []
    with tempfile.TemporaryDirectory() as scratch:
        whole = pathlib.Path(scratch) / "whole"
        whole.mkdir()
        expected, expected_rows, expected_samples = result(finished(start(arguments, whole), whole))
        seconds = float(rows_of(whole)[-1]["seconds"]) / arguments.steps
        for number in range(arguments.runs):
            folder = pathlib.Path(scratch) / str(number)
            folder.mkdir()
            process, step, part = start(arguments, folder), chance.randrange(arguments.steps), chance.random()
            while process.poll() is None and len(rows_of(folder)) < step:
                time.sleep(0.01)
            time.sleep(part * seconds)
            process.send_signal(getattr(signal, f"SIG{arguments.signal}"))
            process.communicate()
            at = len(rows_of(folder))
            arrays, rows, samples = result(finished(start(arguments, folder), folder))
            difference = max(float(np.abs(arrays[name].astype("float64") - expected[name]).max()) for name in expected)
            same = (
                difference == 0 and arrays.keys() == expected.keys() and (rows, samples) == (expected_rows, expected_samples)
            )
            alike, largest = alike + same, max(largest, difference)
            moments.append({"status": process.returncode, "rows": at, "same": same, "difference": difference})
            print(f"run {number + 1}: status {process.returncode} after {at} steps; {'the same' if same else difference}")
            shutil.rmtree(folder)
    record = {
        "same": alike, "runs": arguments.runs, "largest_difference": largest, "settings": vars(arguments),
        "moments": moments, **provenance(),
    }  # fmt: skip
    print(f"{alike} of {arguments.runs} are the same, bit by bit; the largest difference is {largest:.2g}.")
    if arguments.output:
        with open(arguments.output, "a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
