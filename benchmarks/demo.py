"""Does J-BOND learn on the bundled task, at what KL, and how fast? Runs `keras-bond demo` for several seeds.

    python benchmarks/demo.py --backend jax --seeds 0 1 2

Runs that are already in the output folder are re-used. Prints a table and writes `demo-BACKEND.json` beside this file: every
run's summary, and mean and 95 % interval (Student's t) over seeds, with machine, date and commit.
"""

import argparse
import datetime
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys

COLUMNS = (
    "win_rate",
    "kl",
    "frontier_efficiency",
    "kl_efficiency",
    "reward_before",
    "reward_after",
    "seconds",
    "seconds_per_step",
)
STUDENT_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def run(folder, backend, seed, steps):
    """The summary of one run, from its folder if it has been made before."""
    summary = folder / "summary.json"
    if not summary.exists():
        command = [
            sys.executable,
            "-m",
            "keras_bond.cli",
            "demo",
            "--output",
            str(folder),
            "--backend",
            backend,
            "--seed",
            str(seed),
        ]
        subprocess.run(command + (["--steps", str(steps)] if steps else []), check=True)
    return json.loads(summary.read_text())


def interval(values):
    """(mean, half of the 95 % interval) over seeds."""
    if len(values) < 2:
        return values[0], math.nan
    return statistics.mean(values), STUDENT_975[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="jax", choices=("jax", "tensorflow", "torch"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/benchmark"))
    arguments = parser.parse_args()
    runs = [
        run(arguments.output / f"{arguments.backend}-{seed}", arguments.backend, seed, arguments.steps)
        for seed in arguments.seeds
    ]
    result = {
        "command": f"python benchmarks/demo.py --backend {arguments.backend} --seeds {' '.join(map(str, arguments.seeds))}"
        + (f" --steps {arguments.steps}" if arguments.steps else ""),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip(),
        "mean_and_half_interval": {name: interval([r[name] for r in runs]) for name in COLUMNS},
        "runs": runs,
    }
    pathlib.Path(__file__).with_name(f"demo-{arguments.backend}.json").write_text(json.dumps(result, indent=2) + "\n")
    print("| seed | " + " | ".join(COLUMNS) + " |")
    print("|---" * (1 + len(COLUMNS)) + "|")
    for r in runs:
        print(f"| {r['seed']} | " + " | ".join(f"{r[name]:.3f}" for name in COLUMNS) + " |")
    means = (f"{mean:.3f} ± {half:.3f}" for mean, half in result["mean_and_half_interval"].values())
    print("| mean | " + " | ".join(means) + " |")


if __name__ == "__main__":
    main()
