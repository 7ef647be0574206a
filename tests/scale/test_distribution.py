"""Runs over 8 virtual devices equal the run on one: a program of its own, for devices are counted when JAX starts."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(keras.config.backend() != "jax", reason="keras.distribution is JAX's: the runs need JAX")

HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="module")
def result():
    paths = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    run = subprocess.run([sys.executable, HERE / "distributed_runs.py"], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("JBOND", "batch"),
        ("JBOND", "batch, model"),
        ("JBOND, LoRA", "batch"),
        ("JBOND, LoRA", "batch, model"),
        ("BOND, learned quantiles", "batch, model"),
    ],
)
def test_a_distributed_run_equals_that_on_one_device(result, name, mode):
    runs = result["runs"][name]
    assert len(runs["one"]) == (10 if "JBOND" in name else 2)
    # a KL is a small difference of sums: at the first step it is 0 to rounding
    np.testing.assert_allclose(runs[mode], runs["one"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["JBOND", "JBOND, LoRA"])
def test_anchor_reference_and_optimizer_are_laid_out_as_the_variables(result, name):
    held = result["held"][name]
    for variable, *others in held.values():
        assert others == [variable] * 3
    if name == "JBOND":
        assert held["token_embedding/embeddings"][0] == [2, 8]
        assert held["decoder_block_0/attention/query/kernel"][0] == [1, 8, 8]
        assert held["decoder_block_0/ffw_linear/kernel"][0] == [2, 8]
    else:
        assert held["decoder_block_0/attention/query/lora_kernel_a"][0] == [1, 8, 2]


def test_the_work_is_split_over_the_batch(result):
    one, spread = result["flops"]["one"], result["flops"]["batch"]
    for program in ("sample", "score", "update"):
        assert spread[program] < 1.1 * one[program] / 8


def test_rows_that_the_devices_do_not_divide_are_refused(result):
    assert result["refused"] == [
        "`batch_size` must be a multiple of the devices that the batch is spread over, 2 of <ModelParallel device_mesh="
        "<DeviceMesh shape=(2, 4), axis_names=('batch', 'model')>>. Received: 9",
        "The number of prompts that are taken once, in order, must be a multiple of the devices that the batch is spread "
        "over, 2 of <ModelParallel device_mesh=<DeviceMesh shape=(2, 4), axis_names=('batch', 'model')>>. Received: 9",
    ]
