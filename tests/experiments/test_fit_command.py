"""`keras-bond fit`: a run from a file, and what is said before it costs time."""

import csv
import json
import os
import subprocess
import sys

import pytest
import yaml

from keras_bond import presets
from keras_bond.experiments import fit

pytestmark = [pytest.mark.any_backend, pytest.mark.filterwarnings("ignore:No completion of the first")]
SPEC = {
    "preset": "tiny_gemma",
    "lora": 2,
    "prompts": "prompts.csv",
    "column": "question",
    "reward": "of_fit:long",
    "algorithm": {"name": "JBOND", "n": 2},
    "optimizer": {"name": "adam", "learning_rate": 1e-3, "warmup_steps": 2},
    "batch_size": 4,
    "steps": 4,
    "max_prompt_length": 8,
    "max_completion_length": 6,
    "evaluation": {"prompts": "bundled:test", "every": 2, "limit": 6, "batch_size": 8},
    "checkpoints": {"every": 1},
    "samples": {"every": 2, "rows": 1},
    "export": ["preset", "transformers", "peft"],
}
JUDGE = """
def long(prompts, completions, target=None):
    assert target is None or all(text in ("a", "b") for text in target)
    return [len(text) for text in completions]

def needy(prompts, completions, target):
    return [len(text) for text in completions]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "of_fit", raising=False)
    (tmp_path / "of_fit.py").write_text(JUDGE)
    with open("prompts.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([("question", "target"), ("We will", "a"), ("The nation", "b"), ("I ask", "a")])
    yield tmp_path
    sys.modules.pop("of_fit", None)


def write(**changes):
    spec = {name: value for name, value in {**SPEC, **changes}.items() if value is not None}
    with open("spec.yaml", "w") as file:
        yaml.safe_dump(spec, file)
    return "spec.yaml"


def test_a_run_goes_on_and_leaves_what_was_asked_for(folder, capsys):
    path = write()
    assert fit.run(path, "run", dry_run=True) == {}
    said = capsys.readouterr().out
    assert "JBOND on tiny_gemma (" in said
    assert "4 updates of 4 of 3 prompts, 3 completions each" in said
    assert not (folder / "run").exists()

    code = "import os, sys; sys.argv[1:] = ['fit', 'spec.yaml', '--output', 'run']; import keras_bond.callbacks as c\n"
    code += "save = c.Checkpoint._save\n"
    code += "def killed(self):\n    save(self); self._wait()\n    if self._steps == 2: os._exit(9)\n"
    code += "c.Checkpoint._save = killed\nfrom keras_bond.cli import main; main()"
    stopped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), check=False)
    assert stopped.returncode == 9, stopped.stderr[-2000:]
    assert sorted(path.name for path in (folder / "run" / "checkpoints").glob("step-*")) == [
        "step-00000001",
        "step-00000002",
    ]

    summary = fit.run(path, "run")
    with open("run/metrics.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]
    with open("run/samples.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "3"]
    assert json.loads((folder / "run" / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["updates"] == 4
    assert len(summary["estimates"]["win_rate"]) == 3
    for name in ("preset/task.json", "transformers/model.safetensors", "peft/adapter_model.safetensors", "evaluation.csv"):
        assert (folder / "run" / name).is_file(), name
    assert presets.load("run/preset").count_params() == presets.load("tiny_gemma").count_params()

    with pytest.raises(ValueError, match=r"argument --output: 'run' holds the run of another spec"):
        fit.run(write(steps=5), "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepz": 3}, r"`stepz` is no key of a spec: .* Did you mean `steps`\?"),
        ({"steps": None}, r"`steps` is required, and not in 'spec.yaml'"),
        ({"steps": "many"}, r"`steps` must be a whole number. Received: steps='many'"),
        ({"steps": 0}, r"`steps` must be a whole number of at least 1. Received: steps=0"),
        ({"lora": True}, r"`lora` must be a whole number. Received: lora=True"),
        ({"evaluation": {"evry": 1}}, r"`evaluation.evry` is no key of a spec.*Did you mean `evaluation.every`\?"),
        ({"evaluation": {"every": 1}}, r"`evaluation.prompts` is required"),
        ({"prompts": "nothing.txt"}, r"there is no file 'nothing.txt'"),
        ({"column": "prompt"}, r"has no column `prompt`, but question, target"),
        ({"reward": "of_fit:short"}, r"the module of_fit has no attribute 'short'"),
        ({"reward": "of_fit:needy"}, r"`reward` may ask for .* which needs `target`"),  # which the held-out prompts lack
        ({"algorithm": {"name": "PPO"}}, r"`algorithm.name` must be one of .*JBOND.* Received: 'PPO'"),
        ({"algorithm": {"name": "JBOND", "m": 2}}, r"Unrecognized keyword arguments passed to JBOND: .'m': 2."),
        ({"algorithm": {"beta": 2}}, r"`beta` must lie in \[0, 1\]. Received: beta=2"),
        ({"optimizer": {"name": "adamm"}}, r"`optimizer.name` must be one of Keras', or rowwisesgd. Received: 'adamm'"),
        ({"export": ["onnx"]}, r"`export` must hold some of preset, transformers, peft. Received: 'onnx'"),
        ({"export": ["peft"], "lora": None}, r"`export` of `peft` needs LoRA"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        fit.run(write(**changes), "run")
    assert not (folder / "run").exists()


def test_what_is_no_spec_is_refused(folder):
    for text, message in (
        ("- 1", "expected keys and values"),
        ("a: [", "is no YAML"),
        ("!!python/object:x.Y {}", "is no YAML"),
    ):
        (folder / "spec.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            fit.read("spec.yaml")
    with pytest.raises(ValueError, match=r"argument SPEC: there is no file 'nothing.yaml'"):
        fit.read("nothing.yaml")
