"""Does a learned quantile say what counting says? BOND with `quantiles.Learned` on the bundled task.

    python benchmarks/calibration.py --seeds 0 1 2

After training, the held-out completions of the policy are sorted by the quantile that the model predicts and cut into ten
parts; in each the mean prediction stands beside the share of 32 reference samples that are not better. Prints a table over
all seeds and writes `calibration.json` beside this file.
"""

import argparse
import json
import os
import pathlib
import statistics

from common import print_table, provenance

from keras_bond import BOND, presets
from keras_bond.evaluation import calibration
from keras_bond.experiments.align import PRESET, align, bundled_trainer
from keras_bond.quantiles import Learned


def run(seed, steps, prompts):
    """The ten parts of one run: dicts with `predicted` and `empirical`."""
    trainer = bundled_trainer(BOND, seed, 5e-4, n=4, beta=0.05, quantiles=Learned())
    done = align(
        trainer,
        presets.prompts(PRESET, "train"),
        presets.prompts(PRESET, "test")[:prompts],
        steps=steps,
        log=os.devnull,
        seed=seed,
        evaluations=1,
        num_reference_samples=32,
        verbose=0,
    )
    _, final = done.path[-1]
    parts = calibration(trainer.quantiles, trainer.rollout, final)
    return [{"predicted": part.predicted, "empirical": part.empirical.value} for part in parts]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=512, help="held out")
    arguments = parser.parse_args()
    runs = [run(seed, arguments.steps, arguments.prompts) for seed in arguments.seeds]
    rows = [
        [i + 1, *(f"{statistics.mean(parts[i][name] for parts in runs):.3f}" for name in ("predicted", "empirical"))]
        for i in range(10)
    ]
    print_table(["decile", "predicted p_<=", "empirical p_<="], rows)
    errors = [statistics.mean(abs(part["predicted"] - part["empirical"]) for part in parts) for parts in runs]
    print(f"Mean absolute error by decile: {', '.join(f'{error:.3f}' for error in errors)}")
    result = {
        **provenance(),
        "seeds": arguments.seeds,
        "steps": arguments.steps,
        "runs": runs,
        "mean_absolute_error": errors,
    }
    pathlib.Path(__file__).with_name("calibration.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
