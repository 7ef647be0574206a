"""Runs on two replicas equal those on one device: a program of its own, for devices are set when TensorFlow starts."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="tf.distribute is TensorFlow's")

HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="module")
def result():
    paths = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([sys.executable, HERE / "mirrored_runs.py"], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["JBOND", "JBOND, LoRA, in parts, clipped", "Reinforce"])
def test_two_replicas_equal_one_device(result, name):
    one, mirrored = result["runs"][name]["one"], result["runs"][name]["mirrored"]
    assert len(one["steps"]) == 10
    for logged in one:  # a KL is a small difference of sums: at the first step 0 to rounding
        np.testing.assert_allclose(mirrored[logged], one[logged], rtol=1e-4, atol=3e-6)


def test_each_device_has_a_copy_of_policy_anchor_and_optimizer_and_they_agree(result):
    assert {tuple(devices) for devices in result["devices"]} == {("device:CPU:0", "device:CPU:1")}
    assert result["apart"] == 0


def test_completions_stay_with_their_prompts(result):
    np.testing.assert_allclose(*result["scores"], rtol=1e-4)


def test_what_a_strategy_cannot_do_is_refused(result):
    rows, *made, accumulation, learned = result["refused"]
    assert rows == (
        "`batch_size` must be a multiple of the devices that the batch is spread over, 2 of MirroredStrategy. Received: 3"
    )
    for name, message in zip(("policy", "optimizer"), made, strict=True):
        assert message == (
            f"`{name}` must be made under the strategy of the trainer: make policy, optimizer and trainer inside `with "
            "strategy.scope():`. Received one that was made outside of this MirroredStrategy."
        )
    assert accumulation == (
        "`gradient_accumulation_steps` does not work under a `tf.distribute` strategy, where Keras cannot accumulate. Use "
        "the trainer's `microbatch_size`, which is the same update in less memory."
    )
    assert learned == (
        "`quantiles.Learned` does not run under a `tf.distribute` strategy: use `quantiles.MonteCarlo`, or the JAX backend "
        "with `keras.distribution`."
    )
