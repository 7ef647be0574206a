"""`keras-bond fit SPEC.yaml`: a run without a notebook.

preset: tiny_gemma            # required: a bundled preset, a folder, or the name of a KerasHub preset
dtype: mixed_bfloat16         # of the policy; as the preset has it
lora: 8                       # LoRA's rank; without it all weights are trained
chat_template: auto           # none by default: see `keras_bond.data.chat.template`
family: auto                  # how the model is run: see `keras_bond.families.of`
prompts: prompts.jsonl        # required: a file (.jsonl, .csv, or a prompt a line), or bundled:train
column: prompt                # of the file, where the prompts stand
reward: vader                 # required: vader, or module:attribute
algorithm: {name: JBOND, n: 2, beta: 0.5, eta: 0.02}  # a trainer of keras_bond and its own arguments
optimizer: {name: adam, learning_rate: 1.0e-4, warmup_steps: 10}  # of Keras or keras_bond.optimizers, and its arguments
batch_size: 32                # prompts a step
steps: 100                    # required: updates
max_prompt_length: 64         # tokens
max_completion_length: 32     # tokens
long_prompts: error           # or cut, drop
temperature: 1.0
microbatch_size: 8            # prompts in memory at a time in an update; all by default
sampling_batch_size: 8        # prompts that are sampled at a time; all by default
seed: 0
evaluation: {prompts: bundled:test, every: 50, limit: 256, num_samples: 1, num_reference_samples: 4}
checkpoints: {every: 50, keep: 3}
kl_budget: 0.5                # nats; stops the run, and leaves the last policy within them
samples: {every: 20, rows: 2} # tables of what the policy writes
export: [preset, transformers, peft]  # what is written at the end
"""

import difflib
import json
import math
import pathlib
import time

import keras
import yaml

from keras_bond import optimizers, presets, trainers
from keras_bond.callbacks import Checkpoint, EvaluateEvery, KLBudget, SampleTable, StepLogger
from keras_bond.evaluation import Evaluator
from keras_bond.experiments.evaluate import number, table_of
from keras_bond.experiments.inputs import load_policy, load_reward, read_prompts
from keras_bond.experiments.memory import bytes_of
from keras_bond.experiments.provenance import versions, write_whole
from keras_bond.export import to_peft, to_transformers
from keras_bond.export.layouts import layout
from keras_bond.rewards import check_reward
from keras_bond.schedules import LinearWarmup

REQUIRED = ("preset", "prompts", "reward", "steps")
OF_THE_TRAINER = (
    "chat_template",
    "family",
    "max_prompt_length",
    "max_completion_length",
    "long_prompts",
    "temperature",
    "microbatch_size",
    "sampling_batch_size",
    "seed",
)
KINDS: dict = {
    "preset": str,
    "dtype": str,
    "lora": int,
    "prompts": str,
    "column": str,
    "reward": str,
    "algorithm": dict,
    "optimizer": dict,
    "batch_size": int,
    "steps": int,
    "evaluation": dict,
    "checkpoints": dict,
    "kl_budget": (int, float),
    "samples": dict,
    "export": list,
} | dict.fromkeys(OF_THE_TRAINER, object)
_IN_WORDS: dict = {str: "text", int: "a whole number", dict: "keys and values", list: "a list"}
EVALUATION = ("prompts", "every", "limit", "num_samples", "num_reference_samples", "best_of_n", "batch_size")
EXPORTS = ("preset", "transformers", "peft")


def read(path):
    """The spec in a YAML file, a dict, with every key known and of the right kind.

    Raises:
        ValueError: if there is no such file, or what is in it is no spec: the message names the key.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"argument SPEC: there is no file {str(path)!r}")
    try:
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"argument SPEC: {str(path)!r} is no YAML: {error}") from error
    if not isinstance(spec, dict):
        raise ValueError(f"argument SPEC: expected keys and values, {str(path)!r} holds a {type(spec).__name__}")
    _known("", spec, KINDS)
    for key in REQUIRED:
        if spec.get(key) is None:
            raise ValueError(f"`{key}` is required, and not in {str(path)!r}")
    for key, value in spec.items():
        if not isinstance(value, KINDS[key]) or isinstance(value, bool):
            kind = _IN_WORDS.get(KINDS[key], "a number")
            raise ValueError(f"`{key}` must be {kind}. Received: {key}={value!r}")
    for key, least in (("steps", 1), ("batch_size", 1), ("lora", 1)):
        if spec.get(key, least) < least:
            raise ValueError(f"`{key}` must be a whole number of at least {least}. Received: {key}={spec[key]!r}")
    _known("evaluation.", spec.get("evaluation", {}), EVALUATION)
    _known("checkpoints.", spec.get("checkpoints", {}), ("every", "keep"))
    _known("samples.", spec.get("samples", {}), ("every", "rows"))
    for kind in spec.get("export", []):
        if kind not in EXPORTS:
            raise ValueError(f"`export` must hold some of {', '.join(EXPORTS)}. Received: {kind!r}")
    if "peft" in spec.get("export", []) and not spec.get("lora"):
        raise ValueError("`export` of `peft` needs LoRA, whose adapter it is: give `lora` its rank, or leave it out")
    return spec


def run(path, output, dry_run=False, say=print, started=None):
    """Make the run of a spec, or go on with it: the same command goes on where a killed one was.

    Writes to `output`: `spec.yaml`, `metrics.csv` (a row an update), `samples.csv` (tables of samples), `checkpoints/`,
    `evaluation.csv` (every held-out completion), `summary.json`, and what `export` asks for.

    Args:
        path: of the spec, see above.
        output: folder of this run alone.
        dry_run: whether only what would run, the memory that it takes and what is missing is said. Nothing is written.
        say: what prints.
        started: `time.time()` from which `seconds` counts; now by default.

    Returns:
        The summary, a dict.

    Raises:
        ValueError: if the spec is wrong, before anything is computed or written.
    """
    started, output = started or time.time(), pathlib.Path(output)
    spec = read(path)
    prompts, reward = _prompts(spec["prompts"], spec.get("column", "prompt")), load_reward(spec["reward"])
    evaluation = {"every": max(1, spec["steps"] // 2), **spec["evaluation"]} if spec.get("evaluation") else {}
    held_out = _held_out(evaluation, spec) if evaluation else None
    for table in (prompts, held_out or prompts):
        check_reward(reward, [name for name in table if name != "prompt"])
    before = output / "spec.yaml"
    if before.is_file() and yaml.safe_load(before.read_text(encoding="utf-8")) != spec:
        raise ValueError(f"argument --output: {str(output)!r} holds the run of another spec, {str(before)!r}: take another")
    keras.utils.set_random_seed(spec.get("seed", 0))
    policy = load_policy(spec["preset"], dtype=spec.get("dtype"))
    if spec.get("lora"):
        policy.backbone.enable_lora(spec["lora"])
    if {"transformers", "peft"} & {*spec.get("export", [])}:
        layout(policy.backbone)  # or an error, before it costs time
    trainer = _trainer(policy, reward, spec)
    _say_plan(say, trainer, spec, prompts)
    if dry_run:
        return {}

    output.mkdir(parents=True, exist_ok=True)
    write_whole(before, yaml.safe_dump(spec, sort_keys=False))
    callbacks, evaluator = [StepLogger(output / "metrics.csv")], None
    if held_out:
        settings = {name: evaluation[name] for name in EVALUATION[3:] if name in evaluation}
        seed = spec.get("seed", 0)
        evaluator = Evaluator(policy, None, reward, held_out, rollout=trainer.rollout, seed=seed, **settings)
        callbacks.append(EvaluateEvery(evaluator, evaluation["every"]))
    if spec.get("kl_budget"):
        callbacks.append(KLBudget(spec["kl_budget"]))
    if spec.get("samples"):
        callbacks.append(SampleTable(filename=output / "samples.csv", **spec["samples"]))
    callbacks.append(Checkpoint(output / "checkpoints", **spec.get("checkpoints", {})))
    trainer.fit(prompts, batch_size=_batch_size(spec), steps_per_epoch=spec["steps"], callbacks=callbacks)
    summary = _summary(spec, callbacks[0].rows, started)
    if evaluator is not None:
        result = evaluator()
        result.save(output / "evaluation.csv")
        summary["estimates"] = {name: [*map(number, estimate)] for name, estimate in result.estimates.items()}
        say(f"\nHeld out, {len(result.prompts)} prompts:\n{table_of(result.estimates)}")
    summary["exported"] = [_export(trainer, kind, output, say) for kind in spec.get("export", [])]
    write_whole(output / "summary.json", json.dumps(summary, indent=2) + "\n")
    say(f"\nEverything is in {output}.")
    return summary


def _known(where, values, known):
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f" Did you mean `{where}{near[0]}`?" if near else ""
            raise ValueError(f"`{where}{key}` is no key of a spec: there are {', '.join(known)}.{hint}")


def _prompts(name, column="prompt"):
    """The table of a file, or of the bundled prompts; the column of the prompts is called `prompt` in it."""
    if name.startswith("bundled:"):
        return {"prompt": presets.prompts("tiny_gemma", name.removeprefix("bundled:"))}
    table = read_prompts(name, column)
    return {"prompt": table.pop(column), **table}


def _held_out(evaluation, spec):
    if "prompts" not in evaluation:
        raise ValueError("`evaluation.prompts` is required: a file, or bundled:test")
    table = _prompts(evaluation["prompts"], spec.get("column", "prompt"))
    return {name: values[: evaluation.get("limit")] for name, values in table.items()}


def _trainer(policy, reward, spec):
    settings = {"name": "JBOND", **spec.get("algorithm", {})}
    name = str(settings.pop("name"))
    names = [one for one in trainers.__all__ if one != "AlignmentTrainer"]
    if name not in names:
        raise ValueError(f"`algorithm.name` must be one of {', '.join(names)}. Received: {name!r}")
    of_the_trainer = {name: spec[name] for name in OF_THE_TRAINER if name in spec}
    try:
        trainer = getattr(trainers, name)(policy, reward, **settings, **of_the_trainer)
        trainer.compile(_optimizer(spec.get("optimizer", {})))
    except TypeError as error:  # an argument that there is not
        raise ValueError(f"`algorithm` or `optimizer`: {error}") from error
    return trainer


def _optimizer(config):
    config = {"name": "adam", "learning_rate": 1e-4, **config}
    name, warmup = config.pop("name"), config.pop("warmup_steps", 0)
    if warmup:
        config["learning_rate"] = LinearWarmup(config["learning_rate"], warmup)
    ours = {kind.lower(): getattr(optimizers, kind) for kind in dir(optimizers) if kind.endswith("SGD")}
    try:
        kind = ours.get(str(name).lower()) or type(keras.optimizers.get(name))
    except ValueError as error:
        raise ValueError(f"`optimizer.name` must be one of Keras', or rowwisesgd. Received: {name!r}") from error
    return kind(**config)


def _batch_size(spec):
    return spec.get("batch_size", 32)


def _say_plan(say, trainer, spec, prompts):
    """What runs, on how much, and what it keeps in memory from step to step."""
    policy, variables = trainer.policy, trainer.trainable_variables
    trainer._build_optimizer()
    trained = sum(math.prod(v.shape) for v in variables)
    held = {
        "policy": policy.variables,
        "anchor": trainer.anchor.variables,
        "reference": [] if trainer.reference is trainer.anchor else trainer.reference.variables,
        "optimizer": trainer.optimizer.variables,
    }
    memory = {name: bytes_of(of_it) for name, of_it in held.items()}
    rollout, samples = trainer.rollout, trainer.num_samples + trainer.num_anchor_samples
    columns = rollout.max_prompt_length + rollout.max_completion_length
    rows = min(_batch_size(spec), rollout.sampling_batch_size or _batch_size(spec)) * samples
    say(
        f"{type(trainer).__name__} on {spec['preset']} ({policy.count_params():,} weights, {trained:,} of them trained, "
        f"{policy.dtype_policy.name}, {keras.config.backend()}, family {rollout.family.name}).\n"
        f"{spec['steps']} updates of {_batch_size(spec)} of {len(prompts['prompt'])} prompts, {samples} completions each, "
        f"of at most {rollout.max_completion_length} tokens; reward {spec['reward']}.\n"
        f"In memory from step to step: {', '.join(f'{name} {_size(it)}' for name, it in memory.items())}, "
        f"in all {_size(sum(memory.values()))}; on top of it keys and values of up to {rows} rows of {columns} tokens while "
        "it samples, and the activations of an update.\n"
    )


def _size(count):
    """
    >>> _size(1500), _size(3 * 2**30)
    ('1.5 KiB', '3.0 GiB')
    """
    unit = min(3, max(0, (count or 1).bit_length() - 1) // 10)
    return f"{count / 1024**unit:.1f} {('B', 'KiB', 'MiB', 'GiB')[unit]}"


def _summary(spec, rows, started):
    tail = rows[-max(1, len(rows) // 10) :]
    names = [name for name in (tail[-1] if tail else {}) if name not in ("step", "seconds")]
    return {
        "spec": spec,
        "updates": len(rows),
        "seconds": round(time.time() - started, 1),
        "last_tenth": {name: sum(row[name] for row in tail) / len(tail) for name in names},
        "backend": keras.config.backend(),
        "versions": versions(),
    }


def _export(trainer, kind, output, say):
    folder = output / kind
    if folder.exists():  # of the same run, that was done before
        return str(folder)
    if kind == "preset":
        trainer.policy.save_to_preset(folder)
    else:
        (to_transformers if kind == "transformers" else to_peft)(trainer, folder)
    say(f"Exported: {folder}")
    return str(folder)
