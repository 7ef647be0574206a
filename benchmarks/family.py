"""Every algorithm of the paper and its baselines on the bundled task, for the same number of sampled completions.

All with the paper's plain estimators (`variance_reduction=False`).

    python benchmarks/family.py --backend jax --seeds 0 1 2

Each run is a process of its own; finished ones, in the output folder, are re-used. Prints a table and writes
`family-BACKEND.json` beside this file: mean and 95 % interval (Student's t) over seeds of the held-out figures.
"""

import argparse
import json
import os
import pathlib

from common import BEST_OF_4, interval, print_table, provenance, run_cells

BATCH_SIZE = 64
FIGURES = ("reward", "win_rate", "kl", "frontier_efficiency", "kl_efficiency", "completion_length")


def algorithms():
    """name: (trainer class, learning rate, settings)."""
    from keras_bond import BOND, JBOND, BestOfNSFT, IterativeBOND, Reinforce
    from keras_bond.quantiles import Learned, MonteCarlo

    table = {
        "J-BOND": (JBOND, 5e-4, BEST_OF_4),
        "BOND": (BOND, 5e-4, {"n": 4, "beta": 0.05, "quantiles": MonteCarlo(4)}),
        "BOND, learned quantile": (BOND, 5e-4, {"n": 4, "beta": 0.05, "quantiles": Learned()}),
        "iterative BOND": (IterativeBOND, 5e-4, {"n": 4, "beta": 0.05, "quantiles": MonteCarlo(4), "period": 25}),
        "Best-of-N SFT": (BestOfNSFT, 5e-4, {"n": 4}),
    }
    for beta_rl in (0.001, 0.01, 0.1, 1.0):
        table[f"REINFORCE, beta_RL {beta_rl:g}"] = (Reinforce, 3e-4, {"beta_rl": beta_rl})
    return table


def cell(name, seed, completions, prompts, folder):
    """One run; writes `summary.json` to `folder`."""
    from keras_bond import presets
    from keras_bond.experiments.align import PRESET, align, bundled_trainer

    algorithm, learning_rate, settings = algorithms()[name]
    trainer = bundled_trainer(algorithm, seed, learning_rate, **settings)
    samples = trainer.num_samples + trainer.num_anchor_samples
    steps = max(1, round(completions / (samples * BATCH_SIZE)))
    folder.mkdir(parents=True, exist_ok=True)
    held_out = presets.prompts(PRESET, "test")[:prompts]
    train = presets.prompts(PRESET, "train")
    run = align(trainer, train, held_out, steps=steps, log=folder / "metrics.csv", seed=seed, evaluations=2, verbose=0)
    _, final = run.path[-1]
    final.save(folder / "samples.csv")
    summary = {
        "algorithm": name,
        "seed": seed,
        "steps": steps,
        "samples_per_prompt": samples,
        "sampled_completions": steps * samples * BATCH_SIZE,
        "learning_rate": learning_rate,
        "seconds_per_step": run.rows[-1]["seconds"] / steps,
        "estimates": {key: list(estimate) for key, estimate in final.estimates.items()},
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="jax", choices=("jax", "tensorflow", "torch"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--completions", type=int, default=12800, help="sampled in training, per run")
    parser.add_argument("--prompts", type=int, default=512, help="held out")
    parser.add_argument("--only", nargs="+", help="names of algorithms; all by default")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/family"))
    parser.add_argument("--cell", nargs=2, metavar=("NAME", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ["KERAS_BACKEND"] = arguments.backend

    def folder(name, seed):
        readable = name.lower().replace(" ", "-").replace(",", "")
        return arguments.output / f"{arguments.backend}-{arguments.completions}" / f"{readable}-{seed}"

    if arguments.cell:
        name, seed = arguments.cell
        return cell(name, int(seed), arguments.completions, arguments.prompts, folder(name, seed))
    names = arguments.only or list(algorithms())
    runs = run_cells(names, arguments.seeds, folder)
    rows = []
    for name in names:
        of_name = [r for r in runs if r["algorithm"] == name]
        means = [interval([r["estimates"][figure][0] for r in of_name]) for figure in FIGURES]
        first = of_name[0]
        rows.append([name, first["steps"], first["samples_per_prompt"], *(f"{m:.3f} ± {h:.3f}" for m, h in means)])
    print_table(["algorithm", "updates", "samples a prompt", *FIGURES], rows)
    pathlib.Path(__file__).with_name(f"family-{arguments.backend}.json").write_text(
        json.dumps({**provenance(), "seeds": arguments.seeds, "runs": runs}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
