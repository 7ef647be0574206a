"""What a sampled completion buys: win rate and KL on the way to a win rate of 0.70, estimator by estimator, REINFORCE, TRL.

    python benchmarks/sample_efficiency.py --seeds 0 1 2 3 4 --peers PYTHON

Every run ends at 40,000 sampled completions and is evaluated on held-out prompts along its way. A run's figures are those
of its first evaluation at or above 0.70; the table gives their mean and 95 % interval (Student's t) over the seeds that
came there. TRL's GRPO trains the exported model in the environment whose interpreter `--peers` names; without it, it is
left out. Its models are evaluated here, as ours are. Finished runs, in the output folder, are re-used. Writes
`sample_efficiency.json` beside this file; runs of other estimators or seeds that it has already are kept;
those whose name ends in "; exact KL" are of before 5f4e5d4, which had another forward term.
"""

import argparse
import functools
import json
import os
import pathlib
import subprocess

from common import BEST_OF_4, export_for_trl, interval, print_table, provenance, run_cells

RECORD = pathlib.Path(__file__).with_suffix(".json")
WIN_RATE = 0.70
FIGURES = ("win_rate", "kl", "frontier_efficiency", "kl_efficiency")
COLUMNS = ("completions", "seconds", *FIGURES)


def estimators():
    """name: (what makes the trainer, prompts an update, the optimizer's settings, the trainer's)."""
    from keras_bond import JBOND, Reinforce
    from keras_bond.experiments.align import of_the_embedding
    from keras_bond.optimizers import RowwiseSGD

    all_of_8 = {"n": 2, "beta": 0.1, "eta": 0.035, "num_anchor_samples": 8}
    rowwise = {"learning_rate": 0.034, "optimizer": functools.partial(RowwiseSGD, damping=1.0)}
    shrunk = {"learning_rate": 0.08, "optimizer": functools.partial(RowwiseSGD, damping=1.0, shrinkage=3.0)}
    return {
        "J-BOND, all of 8, embedding alone, row by row, shrunk": (of_the_embedding(JBOND), 36, shrunk, all_of_8),
        "J-BOND, all of 8, embedding alone, row by row": (of_the_embedding(JBOND), 36, rowwise, all_of_8),
        "J-BOND, n = 2, all of 8 samples": (JBOND, 36, {"learning_rate": 1.8e-3}, all_of_8),
        "J-BOND, the best of 4 alone": (JBOND, 64, {"learning_rate": 3e-4}, BEST_OF_4),
        "REINFORCE, beta_RL 0.1": (Reinforce, 64, {"learning_rate": 3e-4}, {"beta_rl": 0.1}),
    }


TRL = "TRL GRPO"
GRPO = {"batch_size": 40, "num_generations": 8, "learning_rate": 1e-4, "beta": 0.04}
"""AdamW, as TRL has it; `beta` weighs TRL's KL penalty."""


def point(step, completions, seconds, evaluation):
    """A point of a run's path."""
    figures = {figure: evaluation.estimates[figure].value for figure in FIGURES}
    return {"step": step, "completions": completions, "seconds": seconds, **figures}


def write_summary(folder, name, seed, completions, prompts, **settings_and_path):
    about = {"estimator": name, "seed": seed, "most_completions": completions, "prompts": prompts}
    origin = {key: value for key, value in provenance().items() if key != "command"}
    summary = {**origin, **about, **settings_and_path}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def cell(name, seed, completions, prompts, evaluations, folder):
    """One run; writes `summary.json` to `folder`."""
    import keras

    from keras_bond import presets
    from keras_bond.experiments.align import PRESET, align, bundled_trainer

    algorithm, batch_size, optimizer, settings = estimators()[name]
    trainer = bundled_trainer(algorithm, seed, **optimizer, **settings)
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
        point(step, step * a_step, run.rows[step - 1]["seconds"] if step else 0.0, evaluation)
        for step, evaluation in run.path
    ]
    settings = {"batch_size": batch_size, "optimizer": keras.optimizers.serialize(trainer.optimizer), **settings}
    write_summary(folder, name, seed, completions, prompts, **settings, path=path)


def trl_cell(peers, seed, completions, prompts, evaluations, folder):
    """One run of TRL in the environment of `peers`, its checkpoints evaluated as ours are."""
    import keras_hub

    from keras_bond import presets
    from keras_bond.evaluation import Evaluator
    from keras_bond.experiments.align import PRESET, SIZES
    from keras_bond.rewards import VaderSentiment

    policy, reference = (keras_hub.models.CausalLM.from_preset(presets.path(PRESET)) for _ in range(2))
    folder.mkdir(parents=True, exist_ok=True)
    export_for_trl(policy, folder / "exported")
    evaluator = Evaluator(
        policy,
        reference,
        VaderSentiment(),
        presets.prompts(PRESET, "test")[:prompts],
        num_reference_samples=8,
        seed=seed,
        **SIZES,
    )
    a_step = GRPO["batch_size"] * GRPO["num_generations"]
    steps = completions // a_step
    work = {
        "exported": str(folder / "exported"),
        "tokenizer": str(folder / "exported" / "tokenizer.model"),
        "stop_token_ids": evaluator.rollout.stop_token_ids,
        "token_ids": evaluator.rollout.encode(presets.prompts(PRESET, "train")),
        "completion_length": SIZES["max_completion_length"],
        "folder": str(folder),
        "seed": seed,
        "steps": steps,
        "every": -(-steps // evaluations),
        **GRPO,
    }
    (folder / "work.json").write_text(json.dumps(work))
    script = pathlib.Path(__file__).with_name("sample_efficiency_trl.py")
    done = subprocess.run([peers, script, folder / "work.json"], stdout=subprocess.PIPE, text=True, check=True)
    path = [point(0, 0, 0.0, evaluator())]
    for reached in json.loads(done.stdout.splitlines()[-1]):
        trained = keras_hub.models.GemmaBackbone.from_preset(str(folder / f"step-{reached['step']}"), dtype="float32")
        policy.backbone.set_weights(trained.get_weights())
        path.append(point(reached["step"], reached["step"] * a_step, reached["seconds"], evaluator()))
    write_summary(folder, TRL, seed, completions, prompts, **GRPO, path=path)


def with_recorded(runs):
    """`runs`, and the record's of other estimators or seeds: as many completions and prompts, and no other settings."""

    def key(run):
        return run["estimator"], run["seed"]

    about_a_run = {*provenance(), "seed", "path"}

    def settings(run):
        return {name: value for name, value in run.items() if name not in about_a_run}

    made, present = {key(run) for run in runs}, {run["estimator"]: settings(run) for run in runs}
    recorded = json.loads(RECORD.read_text())["runs"] if RECORD.exists() else []
    sizes = {(run["most_completions"], run["prompts"]) for run in runs}
    others = [run for run in recorded if key(run) not in made and (run["most_completions"], run["prompts"]) in sizes]
    kept = [run for run in others if settings(run) == present.get(run["estimator"], settings(run))]
    return sorted([*kept, *runs], key=key)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--completions", type=int, default=40_000, help="sampled in training, at most, per run")
    parser.add_argument("--prompts", type=int, default=512, help="held out")
    parser.add_argument("--evaluations", type=int, default=8, help="along a run")
    parser.add_argument("--only", nargs="+", help="names of estimators; all by default")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/sample_efficiency"))
    parser.add_argument("--peers", help="interpreter of an environment with trl, sentencepiece and vaderSentiment")
    parser.add_argument("--cell", nargs=2, metavar=("NAME", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ["KERAS_BACKEND"] = "jax"

    def folder(name, seed):
        readable = name.lower().replace(" ", "-").replace(",", "").replace("=", "")
        return arguments.output / f"{arguments.completions}" / f"{readable}-{seed}"

    if arguments.cell:
        name, seed = arguments.cell
        sizes = arguments.completions, arguments.prompts, arguments.evaluations
        if name == TRL:
            return trl_cell(arguments.peers, int(seed), *sizes, folder(name, seed))
        return cell(name, int(seed), *sizes, folder(name, seed))
    names = arguments.only or [*estimators(), *([TRL] if arguments.peers else [])]
    runs = with_recorded(run_cells(names, arguments.seeds, folder))
    rows = []
    for name in dict.fromkeys(run["estimator"] for run in runs):
        paths = [run["path"] for run in runs if run["estimator"] == name]
        firsts = [next((at for at in path if at["win_rate"] >= WIN_RATE), None) for path in paths]
        reached = [at for at in firsts if at]
        shown = reached or [path[-1] for path in paths]
        means = [interval([at[column] for at in shown]) for column in COLUMNS]
        rows.append([name, f"{len(reached)} of {len(paths)}", *(f"{mean:.3g} ± {half:.2g}" for mean, half in means)])
    print_table(["estimator", f"reached {WIN_RATE:.2f}", *COLUMNS], rows)
    result = {**provenance(), "runs": runs}
    if arguments.peers:
        result["command"] = result["command"].replace(arguments.peers, "PYTHON")
    RECORD.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
