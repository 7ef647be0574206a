"""What a sampled completion buys: win rate and KL on the way to a win rate of 0.70, estimator by estimator, and REINFORCE.

    python benchmarks/sample_efficiency.py --seeds 0 1 2 3 4

Every run ends at 40,000 sampled completions and is evaluated on held-out prompts along its way. A run's figures are those
of its first evaluation at or above 0.70; the table gives their mean and 95 % interval (Student's t) over the seeds that
came there. Finished runs, in the output folder, are re-used. Writes `sample_efficiency.json` beside this file.
"""

import argparse
import json
import os
import pathlib

from common import interval, print_table, provenance, run_cells

WIN_RATE = 0.70
FIGURES = ("win_rate", "kl", "frontier_efficiency", "kl_efficiency")
COLUMNS = ("completions", "seconds", *FIGURES)


def estimators():
    """name: (trainer class, prompts an update, learning rate, settings)."""
    from keras_bond import JBOND, Reinforce

    return {
        "J-BOND, the best of 4 alone": (JBOND, 64, 3e-4, {"n": 4, "beta": 0.05, "eta": 0.02, "variance_reduction": False}),
        "J-BOND, n = 2, all of 8 samples": (JBOND, 36, 1.8e-3, {"n": 2, "beta": 0.1, "eta": 0.035, "num_anchor_samples": 8}),
        "REINFORCE, beta_RL 0.1": (Reinforce, 64, 3e-4, {"beta_rl": 0.1}),
    }


def cell(name, seed, completions, prompts, evaluations, folder):
    """One run; writes `summary.json` to `folder`."""
    from keras_bond import presets
    from keras_bond.experiments.align import PRESET, align, bundled_trainer

    algorithm, batch_size, learning_rate, settings = estimators()[name]
    trainer = bundled_trainer(algorithm, seed, learning_rate, **settings)
    a_step = batch_size * (trainer.num_samples + trainer.num_anchor_samples)
    steps = completions // a_step
    folder.mkdir(parents=True, exist_ok=True)
    run = align(
        trainer,
        presets.prompts(PRESET, "train"),
        presets.prompts(PRESET, "test")[:prompts],
        steps=steps,
        log=folder / "metrics.csv",
        batch_size=batch_size,
        seed=seed,
        evaluations=evaluations,
        verbose=0,
    )
    path = [
        {
            "step": step,
            "completions": step * a_step,
            "seconds": run.rows[step - 1]["seconds"] if step else 0.0,
            **{figure: evaluation.estimates[figure].value for figure in FIGURES},
        }
        for step, evaluation in run.path
    ]
    summary = {
        "estimator": name,
        "seed": seed,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        **settings,
        "path": path,
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--completions", type=int, default=40_000, help="sampled in training, at most, per run")
    parser.add_argument("--prompts", type=int, default=512, help="held out")
    parser.add_argument("--evaluations", type=int, default=8, help="along a run")
    parser.add_argument("--only", nargs="+", help="names of estimators; all by default")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/sample_efficiency"))
    parser.add_argument("--cell", nargs=2, metavar=("NAME", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ["KERAS_BACKEND"] = "jax"

    def folder(name, seed):
        readable = name.lower().replace(" ", "-").replace(",", "").replace("=", "")
        return arguments.output / f"{arguments.completions}" / f"{readable}-{seed}"

    if arguments.cell:
        name, seed = arguments.cell
        sizes = arguments.completions, arguments.prompts, arguments.evaluations
        return cell(name, int(seed), *sizes, folder(name, seed))
    names = arguments.only or list(estimators())
    runs = run_cells(names, arguments.seeds, folder)
    rows = []
    for name in names:
        paths = [run["path"] for run in runs if run["estimator"] == name]
        firsts = [next((point for point in path if point["win_rate"] >= WIN_RATE), None) for path in paths]
        reached = [point for point in firsts if point]
        shown = reached or [path[-1] for path in paths]
        means = [interval([point[column] for point in shown]) for column in COLUMNS]
        rows.append([name, f"{len(reached)} of {len(paths)}", *(f"{mean:.3g} ± {half:.2g}" for mean, half in means)])
    print_table(["estimator", f"reached {WIN_RATE:.2f}", *COLUMNS], rows)
    pathlib.Path(__file__).with_name("sample_efficiency.json").write_text(
        json.dumps({**provenance(), "runs": runs}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
