"""One alignment run with its held-out evaluations: what the demo, the benchmarks and the notebooks have in common."""

import pathlib
from typing import Any, NamedTuple

import keras
import keras_hub

from keras_bond import presets
from keras_bond.callbacks import EvaluateEvery, StepLogger
from keras_bond.evaluation import Evaluator, best_of_n_points
from keras_bond.experiments.results import write_results
from keras_bond.rewards import VaderSentiment
from keras_bond.schedules import LinearWarmup

PRESET = "tiny_gemma"
SIZES = {"max_prompt_length": 8, "max_completion_length": 20}
SMOKE = {"steps": 2, "batch_size": 8, "num_prompts": 16, "evaluations": 1}


class Run(NamedTuple):
    """What `align` went through."""

    evaluator: Evaluator
    rows: list
    """One dict of metrics per update, with `step` and `seconds`."""
    path: list
    """(step, `Evaluation`) along the run, held out; the last one is the result."""


def bundled_trainer(
    algorithm,
    seed=0,
    learning_rate=3e-4,
    momentum=0.9,
    clip_norm=20.0,
    warmup_steps=10,
    optimizer=keras.optimizers.SGD,
    **settings,
):
    """A compiled trainer of the bundled model with the VADER reward, under SGD with momentum, warm-up and clipping.

    Args:
        algorithm: a trainer class, such as `keras_bond.JBOND`, or another function of policy, reward and settings.
        seed: of everything random.
        learning_rate, momentum, clip_norm, warmup_steps: of the optimizer.
        optimizer: function that makes one of a learning rate, `momentum` and `global_clipnorm`.
        **settings: of the algorithm.
    """
    keras.utils.set_random_seed(seed)
    policy: Any = keras_hub.models.CausalLM.from_preset(presets.path(PRESET))
    trainer = algorithm(policy, VaderSentiment(), seed=seed, **{**SIZES, **settings})
    schedule = LinearWarmup(learning_rate, warmup_steps)
    trainer.compile(optimizer(schedule, momentum=momentum, global_clipnorm=clip_norm))
    return trainer


def of_the_embedding(algorithm):
    """`algorithm`, a function of policy, reward and settings, with the policy's token embedding alone to train."""

    def make(policy, reward, **settings):
        for layer in policy.backbone.layers:
            layer.trainable = layer is policy.backbone.token_embedding
        return algorithm(policy, reward, **settings)

    return make


def align(
    trainer,
    train,
    held_out,
    *,
    steps,
    log,
    batch_size=64,
    seed=0,
    evaluations=4,
    num_samples=2,
    num_reference_samples=8,
    best_of_n=None,
    verbose=1,
):
    """`trainer.fit`, with evaluations on held-out prompts before, along and after it.

    Args:
        trainer: a compiled trainer.
        train, held_out: prompts: all that `fit` takes.
        steps: updates.
        log: file name of the CSV with every update's metrics.
        batch_size: prompts an update, and a call of the evaluation.
        seed: of the evaluation.
        evaluations: how many parts the run is divided into by evaluations.
        num_samples: samples of the policy per held-out prompt in the last evaluation; one in the others.
        num_reference_samples: samples of the reference per held-out prompt.
        best_of_n: an N, to report the divergences to the Best-of-N distribution too.
        verbose: as in `fit`.

    Returns:
        `Run`.
    """
    evaluator = Evaluator(
        trainer.policy,
        None,
        trainer.reward,
        held_out,
        num_reference_samples=num_reference_samples,
        batch_size=batch_size,
        seed=seed,
        best_of_n=best_of_n,
        rollout=trainer.rollout,
    )
    logger, path = StepLogger(log), EvaluateEvery(evaluator, every=-(-steps // evaluations))
    trainer.fit(train, batch_size=batch_size, steps_per_epoch=steps, callbacks=[logger, path], verbose=verbose)
    final = evaluator(num_samples)
    return Run(evaluator, logger.rows, [*(point for point in path.results if point[0] < steps), (steps, final)])


def align_bundled(trainer, output, *, profile="full", num_prompts=256, best_of=(2, 4), **settings):
    """`align` on the bundled prompts, with the files that `sweep` and `report` read.

    Args:
        trainer: of `bundled_trainer`.
        output: folder, see `results`.
        profile: "full", or "smoke": as little as shows that everything runs, `SMOKE`, whatever the sizes are.
        num_prompts: held-out prompts.
        best_of: the N whose Best-of-N of the reference is told; fewer than reference samples per prompt.
        **settings: `steps` and other arguments of `align`.

    Returns:
        (`Run`, points): what it went through, and Best-of-N as `evaluation.best_of_n_points` returns it.

    Raises:
        ValueError: if there is no such profile.
    """
    if profile not in ("full", "smoke"):
        raise ValueError(f'`profile` must be "full" or "smoke". Received: profile={profile!r}')
    settings = {"num_prompts": num_prompts, **settings, **(SMOKE if profile == "smoke" else {})}
    held_out = presets.prompts(PRESET, "test")[: settings.pop("num_prompts")]
    output = pathlib.Path(output)
    output.mkdir(parents=True, exist_ok=True)
    run = align(trainer, presets.prompts(PRESET, "train"), held_out, log=output / "metrics.csv", **settings)
    points = best_of_n_points(run.evaluator.reference_samples.rewards, best_of)
    write_results(output, run.rows, run.path, points)
    return run, points


def before_after(evaluation):
    """The first sample of the reference and of the policy for each prompt.

    Args:
        evaluation: `Evaluation`.

    Returns:
        A list of dicts with `prompt`, `before`, `after`, `reward_before`, `reward_after`.
    """
    before, after = evaluation.reference_samples, evaluation.samples
    return [
        {
            "prompt": prompt,
            "before": before.texts[0][i],
            "after": after.texts[0][i],
            "reward_before": round(float(before.rewards[i, 0]), 4),
            "reward_after": round(float(after.rewards[i, 0]), 4),
        }
        for i, prompt in enumerate(evaluation.prompts)
    ]
