"""What the benchmarks share: intervals over seeds, and where a figure comes from."""

import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import sys

BEST_OF_4 = {"n": 4, "beta": 0.05, "eta": 0.02, "variance_reduction": False}
"""J-BOND's settings where the paper's estimator is meant, on the bundled model."""

STUDENT_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def interval(values):
    """(mean, half of the 95 % interval) over seeds, Student's t."""
    if len(values) < 2:
        return values[0], math.nan
    return statistics.mean(values), STUDENT_975[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def provenance():
    """Command, date, machine, Python and commit of this run."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "commit": commit,
    }


def run_cells(names, seeds, folder):
    """The summaries of all runs, by name, then seed. A run is a process of its own; a finished one is read, not made again.

    Args:
        names, seeds: of the runs.
        folder: function of name and seed, where `summary.json` of that run is.
    """
    for seed in seeds:
        for name in names:
            if not (folder(name, seed) / "summary.json").exists():
                print(f"{name}, seed {seed} ...", file=sys.stderr, flush=True)
                subprocess.run([sys.executable, *sys.argv, "--cell", name, str(seed)], check=True)
    return [json.loads((folder(name, seed) / "summary.json").read_text()) for name in names for seed in seeds]


def export_for_trl(policy, folder):
    """`export_to_transformers`, and the class of the model in its configuration, which TRL asks for."""
    policy.export_to_transformers(folder)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": ["GemmaForCausalLM"]}))


def print_table(header, rows):
    """A Markdown table."""
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(map(str, row)) + " |")


def use_keras_products(model):
    """Let the dense layers of a policy that a trainer holds compute as Keras has it again, LoRA in sums."""
    for layer in model._flatten_layers():
        vars(layer).pop("call", None)
