"""The compiled pieces of one step, traced from shapes alone."""

import jax
import keras

from keras_bond.rollout import Trajectory, Weights


def trace_step(trainer, batch_size, prompt_length):
    """The programs that a step of `fit` runs, one after another, for the `keras.distribution` in force.

    Args:
        trainer: an `AlignmentTrainer` that is compiled with an optimizer and without quantiles (`JBOND`, `BestOfNSFT`,
            `Reinforce`); it may come from `keras_bond.scale.abstract`: no value of it is read.
        batch_size: prompts a step.
        prompt_length: tokens, the width of the padded prompts.

    Returns:
        dict of functions without arguments that return a `jax.stages.Traced`: `"sample"` (of policy and anchor, for all
        prompts), `"score"` (the policy's samples under another model) and `"update"` (loss, gradients, optimizer and anchor,
        with the state's buffers re-used).
    """
    shape = trainer, batch_size, prompt_length
    return {
        "sample": lambda: _trace_sample(*shape, trainer.rollout.max_completion_length),
        "score": lambda: _trace_score(*shape),
        "update": lambda: _trace_update(*shape),
    }


def trace_token(trainer, batch_size, prompt_length):
    """One token of sampling, over caches of the same length: the program without a prefill.

    XLA counts the body of a loop once, whatever the number of its runs: so `sample` is the prefills and one token of each
    completion, and this is the token.
    """
    return _trace_sample(trainer, batch_size, 1, prompt_length + trainer.rollout.max_completion_length - 1)


def _trace_sample(trainer, batch_size, prompt_length, tokens):
    weights, samples = _weights(trainer.policy), (trainer.num_samples, trainer.num_anchor_samples)
    sources = [(weights, _rows((batch_size, count, tokens), "float32")) for count in samples if count]
    prompt = (_rows((batch_size, prompt_length), "int32"),) * 2
    return jax.jit(lambda *arguments: trainer.rollout.sample_each(*arguments)).trace(sources, *prompt)


def _trace_score(trainer, batch_size, prompt_length):
    prompt = (batch_size, prompt_length)
    completion = (batch_size * trainer.num_samples, trainer.rollout.max_completion_length)
    arguments = (_rows(shape, "int32") for shape in (prompt, prompt, completion))
    return jax.jit(lambda *arguments: trainer.rollout.score(*arguments)).trace(_weights(trainer.policy), *arguments)


def _trace_update(trainer, batch_size, prompt_length):
    state = abstract_state(trainer)
    shardings = jax.tree.map(lambda value: value.sharding, state) if keras.distribution.distribution() else None
    update = jax.jit(trainer.train_step, donate_argnums=0, out_shardings=(None, shardings) if shardings else None)
    return update.trace(state, (_trajectory(trainer, batch_size, prompt_length),))


def _weights(policy):
    return Weights(_variables(policy.trainable_variables), _variables(policy.non_trainable_variables))


def abstract_state(trainer):
    """What Keras hands to the update: trainable, non-trainable, optimizer's and metrics' variables, as shapes."""
    if not trainer.optimizer.built:
        trainer.optimizer.build(trainer.trainable_variables)
    groups = (trainer.trainable_variables, trainer.non_trainable_variables, trainer.optimizer.variables)
    return tuple(_variables(group) for group in (*groups, trainer.metrics_variables))


def _trajectory(trainer, batch_size, prompt_length):
    samples, drawn = batch_size * trainer.num_samples, trainer.num_anchor_samples
    contenders = drawn if trainer.variance_reduction else min(drawn, 1)
    budget = trainer.rollout.max_completion_length
    return Trajectory(
        prompt_ids=_rows((batch_size, prompt_length), "int32"),
        prompt_mask=_rows((batch_size, prompt_length), "int32"),
        completion_ids=_rows((samples, budget), "int32"),
        completion_mask=_rows((samples, budget), "bool"),
        contender_ids=_rows((batch_size * contenders, budget), "int32"),
        contender_mask=_rows((batch_size * contenders, budget), "bool"),
        contender_weights=_rows((batch_size, contenders), "float32"),
        reward=_rows((samples,), "float32"),
        anchor_rewards=_rows((samples, drawn), "float32"),
        relative_reward=_rows((samples,), "float32"),
        relative_anchor_rewards=_rows((samples, drawn), "float32"),
        anchor_log_prob=_rows((samples,), "float32"),
        reference_log_prob=_rows((samples,), "float32"),
    )


def _variables(variables):
    distribution = keras.distribution.distribution()
    return [
        jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=distribution and distribution.get_variable_layout(v).backend_layout)
        for v in variables
    ]


def _rows(shape, dtype):
    distribution = keras.distribution.distribution()
    spread = distribution is not None and shape[0] % distribution.num_model_replicas == 0
    return jax.ShapeDtypeStruct(
        shape, dtype, sharding=distribution.get_data_layout(shape).backend_layout if spread else None
    )
