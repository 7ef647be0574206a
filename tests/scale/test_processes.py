"""Two processes with two virtual devices each train as one process does."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(keras.config.backend() != "jax", reason="keras.distribution is JAX's: the runs need JAX")

HERE = pathlib.Path(__file__).parent
FLAGS = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"


@pytest.fixture(scope="module")
def runs():
    """What the lone process and each of the two printed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    paths = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    processes = [
        subprocess.Popen(
            [sys.executable, HERE / "process_run.py", address, str(index)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for index in (-1, 0, 1)
    ]
    printed = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, printed, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(output.splitlines()[-1]) for output, _ in printed]


def test_both_log_what_one_process_logs(runs):
    alone, *both = runs
    for run in both:
        assert len(run["rows"]) == len(alone["rows"]) == 5
        for row, expected in zip(run["rows"], alone["rows"], strict=True):
            np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-6)


def test_each_scores_its_own_half(runs):
    assert [run["seen"] for run in runs] == [[24] * 4 + [12], [12] * 4 + [6], [12] * 4 + [6]]
