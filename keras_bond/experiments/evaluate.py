"""`keras-bond evaluate`: any policy against any reference, on a file of prompts."""

import json
import math
import pathlib
import time

import keras

from keras_bond.evaluation import UNITS, Evaluator
from keras_bond.experiments.inputs import load_policy, load_reward, read_prompts
from keras_bond.experiments.provenance import versions


def run(policy, reference, reward, prompts, output=None, say=print, started=None, **settings):
    """Evaluate, print the table and, where `output` is given, write `evaluation.json` and `samples.csv`.

    Args:
        policy, reference: names of presets, see `inputs.load_policy`.
        reward: name of a reward, see `inputs.load_reward`.
        prompts: a file, see `inputs.read_prompts`.
        output: folder.
        say: what prints the table.
        started: `time.time()` from which `seconds` counts; now by default.
        **settings: of `evaluation.Evaluator`.

    Returns:
        `Evaluation`.

    Raises:
        ValueError: if an argument is wrong.
        RewardError: if the reward fails.
    """
    started = started or time.time()
    table = _argument("--prompts", read_prompts, prompts)
    judge = _argument("--reward", load_reward, reward)
    ours, theirs = _argument("PRESET", load_policy, policy), _argument("--reference", load_policy, reference)
    if output is not None:
        output = pathlib.Path(output)
        output.mkdir(parents=True, exist_ok=True)
    result = Evaluator(ours, theirs, judge, table, **settings)()
    seconds = round(time.time() - started, 1)
    say(f"{policy} against {reference}, reward {reward}, {len(result.prompts)} prompts, {seconds:.0f} s\n")
    say(table_of(result.estimates))
    if output is not None:
        summary = {
            "policy": policy,
            "reference": reference,
            "reward": reward,
            "prompts": str(prompts),
            "num_prompts": len(result.prompts),
            "estimates": {
                name: {**{k: number(v) for k, v in estimate._asdict().items()}, "unit": UNITS[name]}
                for name, estimate in result.estimates.items()
            },
            "settings": settings,
            "seconds": seconds,
            "backend": keras.config.backend(),
            "versions": versions(),
        }
        (output / "evaluation.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        result.save(output / "samples.csv")
        say(f"\nFigures in {output / 'evaluation.json'}, every completion in {output / 'samples.csv'}.")
    return result


def table_of(estimates):
    """The estimates as text: name, value, low and high end of the 95 % interval, unit.

    >>> from keras_bond.evaluation import Estimate
    >>> print(table_of({"win_rate": Estimate(0.5, 0.4, 0.6)}))
    name                           value       low      high  unit
    win_rate                      0.5000    0.4000    0.6000  share
    """
    rows = [f"{'name':<27}{'value':>9} {'low':>9} {'high':>9}  unit"]
    rows += [
        f"{name:<27}" + " ".join(f"{v:9.4f}" for v in estimate) + f"  {UNITS.get(name, 'share')}"
        for name, estimate in estimates.items()
    ]
    return "\n".join(rows)


def _argument(name, read, value):
    try:
        return read(value)
    except (ValueError, ImportError) as error:
        raise ValueError(f"argument {name}: {error}") from error


def number(value):
    """A figure as JSON has it: `None` where it is not finite."""
    return value if math.isfinite(value) else None
