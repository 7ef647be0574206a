"""What does a step cost at the lengths that people have: budgets above completions, prompts of uneven length?

    python benchmarks/lengths.py --model bundled --budgets 24 64 256 1024 --before TREE
    python benchmarks/lengths.py --model gemma_2b --dtype bfloat16 --lora 8 --budgets 512 --mean 200 --batch-size 32

Completions have lengths of a geometric law: the stop token's logit is set so that it has the probability 1 / MEAN after
every token, in sampling, scoring and the update, whatever the weights are; with `--mean 0` the model itself decides. Each
budget is a contestant, on each backend that `--backends` names, and so is the package in the tree that `--before` names. All
are processes that take turns; the ratio to the first one is taken within each round. `real` tokens are those up to and with
the stop token, of all samples; `waste` is the share of positions of the update that hold no token.

`--prompts even` gives every prompt 8 tokens; `tail` gives lengths of a heavy tail (8 over a uniform number, at most 176);
`one-long` gives one prompt of 170 tokens in every batch of others of 5. Writes `lengths-MODEL-PROMPTS-MEAN.json` beside this
file, on a GPU with the card's name.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile

from common import print_table, provenance
from step import SHARED_GPU
from turns import Contestant, medians

HERE = pathlib.Path(__file__).parent
PARTS = ("sampling", "scoring", "update", "total")


def contestants(arguments, folder):
    """name: (command, environment): a process for each budget, backend and tree."""
    table = {}
    trees = {"": None} | ({f" of {pathlib.Path(arguments.before).name}": arguments.before} if arguments.before else {})
    for backend in arguments.backends:
        for name, tree in trees.items():
            for budget in arguments.budgets:
                work = {**vars(arguments), "budget": budget}
                file = pathlib.Path(folder, f"{backend}-{budget}.json")
                file.write_text(json.dumps(work))
                environment = {"KERAS_BACKEND": backend, **SHARED_GPU}
                if tree:
                    environment["PYTHONPATH"] = str(pathlib.Path(tree).resolve())
                command = [sys.executable, HERE / "lengths_keras.py", file]
                table[f"keras_bond{name}, {backend}, budget {budget}"] = command, environment
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="bundled", help="bundled, 1.5M, 46M, 350M, or of `scale`: gemma_2b, gemma3_1b, ..."
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--lora", type=int, help="its rank; all weights by default")
    parser.add_argument("--budgets", type=int, nargs="+", default=[24, 64, 256, 1024])
    parser.add_argument("--mean", type=float, default=15, help="tokens of a completion; 0: as the model has it")
    parser.add_argument("--prompts", choices=("even", "tail", "one-long"), default="even")
    parser.add_argument("--backends", nargs="+", default=["jax"])
    parser.add_argument("--before", help="another tree of the package")
    parser.add_argument("--batch-size", type=int, default=16, help="prompts a step, of 1 + 2 completions each")
    parser.add_argument("--microbatch-size", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="a turn")
    arguments = parser.parse_args()
    about = {**provenance(), **vars(arguments)}
    with tempfile.TemporaryDirectory() as folder:
        running = {name: Contestant(command, **more) for name, (command, more) in contestants(arguments, folder).items()}
        try:
            versions = {name: contestant.ready() for name, contestant in running.items()}
            turns = {name: [] for name in running}
            for _ in range(arguments.rounds):
                for name, contestant in running.items():
                    turns[name].append(medians(contestant.turn(arguments.steps)))
                    print(f"{turns[name][-1]['total']:.3f} s a step, {name}", file=sys.stderr, flush=True)
                results = [*summaries(turns, versions)]
                gpus = sorted({r["versions"]["gpu"] for r in results if r["versions"].get("gpu")})
                parts = [arguments.model, arguments.prompts, f"{arguments.mean:g}"]
                parts += [gpu.removeprefix("1 x ").replace(" ", "-") for gpu in gpus]
                written = {**about, "rounds": len(turns[name]), "contestants": results}
                (HERE / f"lengths-{'-'.join(parts)}.json").write_text(json.dumps(written, indent=2) + "\n")
        finally:
            for contestant in running.values():
                contestant.close()
    print_table(
        [
            "contestant",
            *(f"{part}, s" for part in PARTS),
            "real tokens/s",
            "waste",
            "of the peak",
            "time, ratio (least to most)",
        ],
        [
            [
                r["name"],
                *(f"{r['seconds'][part]:.3f}" for part in PARTS),
                f"{r['seconds']['real'] / r['seconds']['total']:.0f}",
                f"{1 - r['seconds']['real'] / r['seconds']['positions']:.2f}",
                f"{r['seconds']['flops'] / r['seconds']['update'] / r['versions']['peak']:.2f}",
                "{:.2f} ({:.2f} to {:.2f})".format(*r["ratio"]),
            ]
            for r in results
        ],
    )


def summaries(turns, versions):
    """A dict for each contestant: its medians, and its time as a ratio to the first one's, round by round."""
    first = next(iter(turns.values()))
    for name, own in turns.items():
        ratios = [turn["total"] / other["total"] for turn, other in zip(own, first, strict=True)]
        ratio = [statistics.median(ratios), min(ratios), max(ratios)]
        yield {"name": name, "seconds": medians(own), "ratio": ratio, "rounds": own, "versions": versions[name]}


if __name__ == "__main__":
    main()
