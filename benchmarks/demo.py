"""Does J-BOND learn on the bundled task, at what KL, and how fast? Runs `keras-bond demo` for several seeds.

    python benchmarks/demo.py --backend jax --seeds 0 1 2

Runs that are already in the output folder are re-used. Prints a table and writes `demo-BACKEND.json` beside this file: every
run's summary, and mean and 95 % interval (Student's t) over seeds, with machine, date and commit.
"""

import argparse
import json
import pathlib
import subprocess
import sys

from common import interval, print_table, provenance

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
        **provenance(),
        "mean_and_half_interval": {name: interval([r[name] for r in runs]) for name in COLUMNS},
        "runs": runs,
    }
    pathlib.Path(__file__).with_name(f"demo-{arguments.backend}.json").write_text(json.dumps(result, indent=2) + "\n")
    means = (f"{mean:.3f} ± {half:.3f}" for mean, half in result["mean_and_half_interval"].values())
    rows = [[r["seed"], *(f"{r[name]:.3f}" for name in COLUMNS)] for r in runs]
    print_table(["seed", *COLUMNS], [*rows, ["mean", *means]])


if __name__ == "__main__":
    main()
