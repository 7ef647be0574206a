"""Processes that share four virtual devices train as one process does, and go on after one of them was killed."""

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


def start(count, *more, dies_at=None):
    """`count` processes of `process_run.py`, or a lone one with 0; the last of them is killed in step `dies_at`."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    paths = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={4 // (count or 1)}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": paths,
        "TF_CPP_MIN_LOG_LEVEL": "0",
    }
    return [
        subprocess.Popen(
            [sys.executable, HERE / "process_run.py", address, str(count), str(index), *more]
            + [str(dies_at)] * (dies_at is not None and index == count - 1),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for index in range(count or 1)
    ]


def finish(processes):
    """What each of them has printed, once all have ended well."""
    printed = [process.communicate(timeout=600) for process in processes]
    for process, (_, errors) in zip(processes, printed, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [json.loads(output.splitlines()[-1]) for output, _ in printed]


@pytest.fixture(scope="module")
def alone():
    return finish(start(0))[0]


def assert_same(run, rows):
    assert len(run["rows"]) == len(rows)
    for row, expected in zip(run["rows"], rows, strict=True):
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-6)


def test_two_processes_log_what_one_logs_and_score_a_half_each(alone):
    assert len(alone["rows"]) == 5
    assert alone["seen"] == [24] * 4 + [12]
    for run in finish(start(2)):
        assert_same(run, alone["rows"])
        assert run["seen"] == [12] * 4 + [6]


def test_when_one_of_two_is_killed_the_other_stops_and_both_go_on_from_the_checkpoint(alone, tmp_path):
    folder = tmp_path / "checkpoints"
    survivor, killed = start(2, folder, dies_at=3)
    _, errors = survivor.communicate(timeout=300)  # 10 seconds after the other's end, and what it takes to get there
    killed.communicate()
    assert survivor.returncode != 0
    assert "heartbeat" in errors, errors[-3000:]
    assert [path.name for path in folder.iterdir()] == ["2"]
    for run in finish(start(2, folder)):
        assert_same(run, alone["rows"][2:])
        assert run["seen"] == [12] * 2 + [6]
