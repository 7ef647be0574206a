"""The command line as a person meets it: exit status 2 and one line for a wrong argument, 1 for a failed run."""

import json
import os
import subprocess
import sys

import keras
import pytest

BACKEND = keras.config.backend()


def keras_bond(*arguments, **environment):
    command = [sys.executable, "-m", "keras_bond.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--backend", "mxnet"], "expected one of jax, tensorflow, torch, received 'mxnet'"),
        (["demo", "--steps", "0"], "expected an integer of at least 1 and below 2**32, received 0"),
        (["demo", "--steps", "many"], "expected an integer of at least 1 and below 2**32, received many"),
        (["demo", "--seed", "-1"], "expected an integer of at least 0 and below 2**32, received -1"),
        (["demo", "--output", __file__], "is a file"),
        (["dance"], "invalid choice: 'dance'"),
        ([], "required: COMMAND"),
    ],
)
def test_wrong_arguments(arguments, message):
    result = keras_bond(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_the_demo_writes_what_it_promises(tmp_path):
    output = tmp_path / "demo"
    result = keras_bond(
        "demo", "--output", str(output), "--backend", BACKEND, "--steps", "3", "--seed", "1", "--prompts", "64"
    )
    assert result.returncode == 0, result.stderr
    summary = json.loads((output / "summary.json").read_text())
    promised = (
        "algorithm backend seed steps seconds compile_seconds seconds_per_step tokens_per_second parameters reward_before "
        "reward_after win_rate win_rate_ci kl kl_ci frontier_efficiency kl_efficiency versions"
    )
    assert set(promised.split()) <= set(summary)
    assert (summary["backend"], summary["seed"], summary["steps"]) == (BACKEND, 1, 3)
    assert summary["win_rate_ci"][0] < summary["win_rate"] < summary["win_rate_ci"][1]
    assert len((output / "metrics.csv").read_text().splitlines()) == 4
    header, *rows = (output / "samples.csv").read_text().splitlines()
    assert header == "prompt,before,after,reward_before,reward_after"
    assert len(rows) == 64
    assert (output / "frontier.png").read_bytes()[:4] == b"\x89PNG"
    import keras_hub

    policy = keras_hub.models.CausalLM.from_preset(str(output / "policy"))
    assert policy.generate("We will", max_length=12).startswith("We will")
    assert "Win rate against the reference" in result.stdout
