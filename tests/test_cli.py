"""The command line as a person meets it: exit status 2 and one line for a wrong argument, 1 for a failed run."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tiny

from keras_bond import cli
from keras_bond import presets as bundled
from keras_bond.evaluation import ZERO_SHOT, load

BACKEND = keras.config.backend()
EVALUATE = ["evaluate", "tiny_gemma", "--reference", "tiny_gemma", "--reward", "vader", "--prompts", "prompts.txt"]


def keras_bond(*arguments, **environment):
    command = [sys.executable, "-m", "keras_bond.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


@pytest.mark.any_backend
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--backend", "mxnet"], "expected one of jax, tensorflow, torch, received 'mxnet'"),
        (["demo", "--steps", "0"], "expected an integer of at least 1 and below 2**32, received 0"),
        (["demo", "--steps", "many"], "expected an integer of at least 1 and below 2**32, received many"),
        (["demo", "--seed", "-1"], "expected an integer of at least 0 and below 2**32, received -1"),
        (["demo", "--output", __file__], "is a file"),
        (["evaluate", "tiny_gemma"], "required: --reference, --reward, --prompts"),
        (
            [*EVALUATE, "--best-of-n", "1"],
            "argument --best-of-n: expected an integer of at least 2 and below 2**32, received 1",
        ),
        ([*EVALUATE, "--temperature", "0"], "argument --temperature: expected a number above 0, received 0"),
        ([*EVALUATE, "--temperature", "warm"], "argument --temperature: expected a number above 0, received warm"),
        ([*EVALUATE, "--backend", "mxnet"], "expected one of jax, tensorflow, torch, received 'mxnet'"),
        ([*EVALUATE, "--output", __file__], f"argument --output: expected a folder, {__file__} is a file"),
        (["benchmark", "tiny_gemma"], "required: --tasks"),
        (
            ["benchmark", "tiny_gemma", "--tasks", "GPQA", "--limit", "0"],
            "expected an integer of at least 1 and below 2**32",
        ),
        (
            ["benchmark", "tiny_gemma", "--tasks", "GPQA", "--output", str(pathlib.Path(__file__).parent)],
            f"argument --output: expected a file, {pathlib.Path(__file__).parent} is a folder",
        ),
        (["scale", "--preset", "gemma_2b"], "required: --topology"),
        (
            ["scale", "--preset", "gemma_2b", "--topology", "v5e:2x4", "--batch", "0"],
            "argument --batch: expected an integer",
        ),
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


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    """A folder with the presets `policy` and `reference`, and what the commands below read."""
    folder = tmp_path_factory.mktemp("presets")
    for scale, name in ((0.1, "reference"), (2.0, "policy")):  # nearly uniform, and of little entropy
        tiny.causal_lm(scale=scale).save_to_preset(str(folder / name))
    (folder / "judge.py").write_text(
        "def letters(prompts, completions, weight):\n"
        "    return [w * (c.count('a') - c.count('c')) for c, w in zip(completions, weight)]\n"
        "def broken(prompts, completions):\n"
        "    raise KeyError('no such\\nreward')\n"
    )
    rows = [{"prompt": p, "weight": w} for p, w in (("ab", 1), ("", 2), ("c a", 1.5))] * 10
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "long.txt").write_text("a\nabcabcabc\n")
    return folder


@pytest.fixture
def command(presets, monkeypatch, capsys):
    """`keras-bond ...` in this process, from that folder: (exit status, stdout, stderr)."""
    monkeypatch.chdir(presets)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("KERAS_BACKEND", BACKEND)

    def run(*arguments):
        status, message = 0, ""
        try:
            cli.main(arguments)
        except SystemExit as error:
            status, message = (error.code, "") if isinstance(error.code, int) else (1, f"{error.code}\n")
        out, err = capsys.readouterr()
        return status, out, err + message

    return run


@pytest.fixture
def evaluate(command):
    """`keras-bond evaluate` with small sizes: what `command` returns."""

    def run(*arguments, **options):
        options = {"reference": "reference", "reward": "judge:letters", "prompts": "prompts.jsonl"} | options
        sizes = ["--max-prompt-length", "8", "--max-completion-length", "4", "--batch-size", "16"]
        flags = [x for name, value in options.items() for x in (f"--{name}", value)]
        return command("evaluate", *(arguments or ["policy"]), *sizes, *flags)

    return run


def test_evaluate_prints_and_writes_what_it_promises(evaluate, presets, tmp_path):
    output = tmp_path / "new" / "folder"
    options = {"num-samples": "2", "num-reference-samples": "3", "best-of-n": "2", "seed": "5", "temperature": "0.9"}
    status, printed, _ = evaluate("policy", output=str(output), **options)
    assert status == 0
    result = json.loads((output / "evaluation.json").read_text())
    assert (result["policy"], result["reference"], result["reward"]) == ("policy", "reference", "judge:letters")
    assert (result["prompts"], result["num_prompts"]) == ("prompts.jsonl", 30)
    assert result["settings"] == {
        "num_samples": 2,
        "num_reference_samples": 3,
        "best_of_n": 2,
        "batch_size": 16,
        "max_prompt_length": 8,
        "max_completion_length": 4,
        "seed": 5,
        "temperature": 0.9,
    }
    assert set(result["versions"]) >= {"keras_bond", "keras", "keras_hub", BACKEND, "numpy", "python"}
    assert result["backend"] == BACKEND
    again = load(output / "samples.csv", best_of_n=2, seed=5)
    for name, (value, low, high) in again.estimates.items():
        written = result["estimates"][name]  # NaN, such as the interval of a single group, is null
        np.testing.assert_equal(
            [written[k] if written[k] is not None else np.nan for k in ("value", "low", "high")], [value, low, high]
        )
        assert f"{name:<27}{value:9.4f} {low:9.4f} {high:9.4f}  {written['unit']}" in printed.splitlines()
    assert set(result["estimates"]) == set(again.estimates)
    assert again.prompts[:3] == ["ab", "", "c a"]
    assert again.samples.rewards.shape == (30, 2)
    assert again.samples.log_probs.mean() > again.reference_samples.reference_log_probs.mean() + 2
    counts = np.array([text.count("a") - text.count("c") for text in again.samples.texts[0]])
    np.testing.assert_allclose(again.samples.rewards[:, 0], counts * np.tile([1, 2, 1.5], 10))  # the column reached it


@pytest.mark.parametrize(
    ("arguments", "options", "status", "message"),
    [
        (
            ["runs/nothing"],
            {},
            2,
            "argument PRESET: expected a bundled preset (tiny_gemma), the folder of a preset or the name of a KerasHub "
            "preset, received 'runs/nothing'",
        ),
        ([], {"prompts": "none.txt"}, 2, "argument --prompts: there is no file 'none.txt'"),
        ([], {"reward": "joy"}, 2, "argument --reward: expected vader or module:attribute, received 'joy'"),
        ([], {"reward": "judge:joy"}, 2, "argument --reward: the module judge has no attribute 'joy'"),
        (
            [],
            {"reward": "vader", "prompts": "long.txt"},
            2,
            "Prompt 1 has 10 tokens (start token included), more than `max_prompt_length`=8. Raise the limit, "
            'shorten them, or choose what becomes of them: `long_prompts="cut"` keeps their end, "drop" leaves them out. '
            "Received: 'abcabcabc'",
        ),
        (
            [],
            {"best-of-n": "4"},
            2,
            "`num_reference_samples` must be above `best_of_n`=4, whose quantiles they estimate: raise it, the paper takes "
            "32. Received: num_reference_samples=4",
        ),
        (["tiny_gemma"], {}, 2, "`policy` and `reference` must share one vocabulary. Received sizes {size} and 7"),
        (
            [],
            {"reward": "judge:broken"},
            1,
            "The `reward` function `broken` raised KeyError: 'no such\\nreward' It was given 30 completions, the first for "
            "the prompt 'ab'. The policy is as it was after the last step.",
        ),
    ],
)
def test_evaluate_says_what_is_wrong(evaluate, arguments, options, status, message):
    config = json.loads(pathlib.Path(bundled.path("tiny_gemma"), "config.json").read_text())
    message = message.format(size=config["config"]["vocabulary_size"])
    assert evaluate(*arguments, **options) == (status, "", f"keras-bond: {message}\n")


@pytest.mark.any_backend
@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        ("demo", "matplotlib", "experiments"),
        ("demo", "vaderSentiment", "experiments"),
        ("benchmark tiny_gemma --tasks GPQA", "lm_eval", "benchmark"),
        ("sweep x.yaml --output out", "joblib", "notebooks"),
        ("scale --preset gemma_2b --topology v5e:2x4", "libtpu", "tpu-compile"),
        ("report runs", "scipy", "notebooks"),
    ],
)
def test_a_missing_package_says_how_to_install_it(monkeypatch, capsys, command, package, extra):
    monkeypatch.setenv("KERAS_BACKEND", BACKEND)
    monkeypatch.setenv("JAX_PLATFORMS", os.environ.get("JAX_PLATFORMS", ""))
    find = importlib.util.find_spec
    here = {"lm_eval", "libtpu", "joblib", "matplotlib", "vaderSentiment", "scipy"} - {package}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else name if name in here else find(name)
    )
    with pytest.raises(SystemExit) as error:
        cli.main(command.split())
    assert error.value.code == 2
    name = command.split()[0]
    assert capsys.readouterr().err == f"keras-bond: {name} needs {package}: pip install 'keras-bond[{extra}]'\n"


@pytest.mark.any_backend
@pytest.mark.parametrize("command", ["run x", "sweep x.yaml", "demo"])
def test_a_file_is_no_place_for_results(monkeypatch, capsys, command):
    monkeypatch.setenv("KERAS_BACKEND", BACKEND)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(SystemExit) as error:
        cli.main([*command.split(), "--output", __file__])
    assert error.value.code == 2
    assert capsys.readouterr().err == f"keras-bond: argument --output: expected a folder, {__file__} is a file\n"


LETTERS = """
task: letters
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}, cache_dir: CACHE}
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: [a, b]
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def test_benchmark_prints_and_writes_what_it_promises(command, presets, tmp_path):
    (tmp_path / "letters.yaml").write_text(
        LETTERS.replace("DATA", str(presets / "prompts.jsonl")).replace("CACHE", str(tmp_path / "cache"))
    )
    output = tmp_path / "new" / "scores.json"
    arguments = ["benchmark", "policy", "--include-path", str(tmp_path), "--output", str(output)]
    status, printed, _ = command(*arguments, "--tasks", " letters,", "--limit", "6", "--batch-size", "2")
    assert status == 0
    result = json.loads(output.read_text())
    (score,) = result["scores"]
    value, stderr = score.pop("value"), score.pop("stderr")
    expected = {"task": "letters", "metric": "acc", "filter": "none", "num_fewshot": 0, "num_samples": 6}
    assert score == {**expected, "higher_is_better": True}
    assert printed.splitlines()[2:4] == [
        "task     shots  documents  metric  filter   value  std. error",
        f"letters      0          6  acc     none    {value:.4f}      {stderr:.4f}",
    ]
    assert (result["preset"], result["tasks"], result["backend"]) == ("policy", ["letters"], BACKEND)
    assert (result["settings"]["limit"], result["settings"]["batch_size"], result["settings"]["dtype"]) == (6, 2, None)
    assert set(result["versions"]) >= {"keras_bond", "keras_hub", "lm_eval", BACKEND}

    output.unlink()
    (tmp_path / "letters.yaml").write_text(LETTERS.replace("DATA", "none.jsonl").replace("CACHE", str(tmp_path / "cache")))
    status, printed, message = command(*arguments, "--tasks", "letters")
    assert (status, printed) == (1, "")
    assert message.startswith("keras-bond: The task letters cannot be loaded: FileNotFoundError: ")
    assert message.endswith("or name a folder of tasks with local data by `include_path` (--include-path).\n")
    assert len(message.splitlines()) == 1
    assert not output.exists()


@pytest.mark.any_backend
def test_benchmark_names_what_is_what_in_the_harness():
    result = keras_bond("benchmark", "--help")
    assert result.returncode == 0
    assert all(f"{ours} is {theirs}" in " ".join(result.stdout.split()) for ours, theirs in ZERO_SHOT.items())
