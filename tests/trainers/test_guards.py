"""What must not go wrong in silence stops a run, or is said once."""

import keras
import numpy as np
import pytest
import tiny
from keras import ops

from keras_bond import JBOND
from keras_bond.schedules import LinearWarmup, PerUpdate
from keras_bond.trainers.guards import NotFiniteError, check_precision, largest_rate

PROMPTS = ["ab", "c", "bca", "aab", "cc"]


def trainer_of(optimizer, reward=tiny.letters_reward, policy=None, **kwargs):
    sizes = {"max_prompt_length": 8, "max_completion_length": 4}
    trainer = JBOND(policy or tiny.causal_lm(), reward, **{**sizes, **kwargs})
    trainer.compile(optimizer)
    return trainer


def values(variables):
    return [ops.convert_to_numpy(ops.cast(v.value, "float32")) + 0 for v in variables]


def fit(trainer, steps, **kwargs):
    return trainer.fit(PROMPTS, batch_size=8, steps_per_epoch=steps, verbose=0, **kwargs)


def test_a_run_that_breaks_stops_at_that_update_and_keeps_the_state_before_it():
    """Momentum, anchor and counters too: the update that is not finite is not made at all."""
    kept = []

    class Keep(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.sync()
            groups = (self.model.policy.variables, self.model.anchor.variables, self.model.optimizer.variables)
            kept.append([v for group in groups for v in values(group)])

    trainer = trainer_of(keras.optimizers.SGD(1e9, momentum=0.9))
    message = r"`\w+` is -?(nan|inf) at update 2 .* the trainer is as it was before it"
    with pytest.raises(NotFiniteError, match=message) as error:
        fit(trainer, 10, callbacks=[Keep()])
    assert all(f"{name}=" in str(error.value) for name in ("kl_reference", "loss", "grad_norm"))
    assert int(trainer.optimizer.iterations) == int(trainer.anchor.updates) == 1
    before, after = kept
    assert all(np.isfinite(value).all() for value in after)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)

    variable = trainer.policy.trainable_variables[0]  # now they are spoilt, and that is told apart
    variable.assign(ops.full_like(variable.value, np.nan))
    with pytest.raises(NotFiniteError, match=r"update 1 .*weights are not finite either"):
        fit(trainer, 3)


def test_half_precision_is_refused_where_no_weight_can_move():
    """bfloat16 has 8 bits: 1 + 2^-8 rounds to 1, and 2^-7 + 2^-15 to 2^-7. Adam moves a weight by its learning rate."""

    def check(rate, weights, dtype="bfloat16", optimizer=keras.optimizers.Adam):
        variable = keras.Variable(np.array(weights, "float32"), dtype=dtype)
        optimizer = optimizer(rate)
        optimizer.build([variable])
        check_precision([variable], optimizer, updates=100)

    with pytest.raises(ValueError, match=r"100% of the trained weights are bfloat16 and cannot move.*mixed_bfloat16"):
        check(3e-6, [0.02, -0.5, 1.0])
    with pytest.raises(ValueError, match="the largest learning rate of this run, 3e-06, is below"):
        check(LinearWarmup(3e-6, 10), [0.02, -0.5, 1.0])
    with pytest.warns(UserWarning, match="67% of the trained weights are bfloat16 and cannot move"):
        check(3e-6, [0.02, 1.0, 0.0])
    check(3e-6, [0.02, -0.5, 1.0], dtype="float32")
    check(3e-6, [0.02, -0.5, 1.0], optimizer=keras.optimizers.SGD)  # whose steps depend on the gradient
    check(2.0**-8 * 1.01, [1.0, 1.5])
    with pytest.raises(ValueError, match="100%"):
        check(2.0**-8 * 0.99, [1.0, 1.5])


def test_fit_refuses_a_bfloat16_policy_whose_steps_round_away():
    policy = tiny.causal_lm(dtype="bfloat16", scale=0.5)
    start = values(policy.variables)
    with pytest.raises(ValueError, match="are bfloat16 and cannot move"):
        fit(trainer_of(keras.optimizers.Adam(3e-6), policy=policy), 5)
    for a, b in zip(start, values(policy.variables), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="Not one of the trained weights has changed in 5 steps: they are bfloat16"):
        fit(trainer_of(keras.optimizers.SGD(1e-9), policy=policy), 9)


def test_the_largest_rate_of_a_run():
    optimizer = keras.optimizers.Adam(LinearWarmup(1.0, 100))
    optimizer.build([])
    assert largest_rate(optimizer, 10) == pytest.approx(0.1)
    assert largest_rate(optimizer, 1000) == pytest.approx(1.0)
    optimizer.iterations.assign(49)
    assert largest_rate(optimizer, 1) == pytest.approx(0.5)
    assert largest_rate(keras.optimizers.Adam(0.25), 1) == 0.25


def test_half_precision_scales_the_loss():
    for dtype in ("mixed_float16", "float16"):
        trainer = trainer_of(keras.optimizers.SGD(0.1), policy=tiny.causal_lm(dtype=dtype))
        assert isinstance(trainer.optimizer, keras.optimizers.LossScaleOptimizer)
    trainer.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)))
    assert isinstance(trainer.optimizer.inner_optimizer, keras.optimizers.SGD)
    trainer.compile(keras.optimizers.SGD(0.1), auto_scale_loss=False)
    assert isinstance(trainer.optimizer, keras.optimizers.SGD)
    trainer = trainer_of("sgd", policy=tiny.causal_lm(dtype="mixed_bfloat16"))
    assert isinstance(trainer.optimizer, keras.optimizers.SGD)


def test_a_scaled_loss_may_overflow_the_gradient():
    """The first scale is too large for float16: Keras' optimizer leaves the step out and halves it. The run goes on."""
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01), initial_scale=2.0**40)
    trainer = trainer_of(optimizer, policy=tiny.causal_lm(dtype="mixed_float16"))
    fit(trainer, 2)
    assert int(trainer.anchor.updates) == int(optimizer.iterations) < 2
    assert float(optimizer.dynamic_scale) < 2.0**40


def test_a_schedule_counts_updates_where_gradients_accumulate():
    trainer = trainer_of(keras.optimizers.SGD(LinearWarmup(1e-3, 10), gradient_accumulation_steps=4))
    assert isinstance(trainer.optimizer._learning_rate, PerUpdate)
    trainer.optimizer.build(trainer.trainable_variables)
    trainer.optimizer._iterations.assign(8)
    assert float(trainer.optimizer.learning_rate) == pytest.approx(3e-4)
    config = keras.saving.serialize_keras_object(trainer.optimizer)
    trainer.compile(keras.saving.deserialize_keras_object(config))  # is not wrapped twice
    assert isinstance(trainer.optimizer._learning_rate.schedule, LinearWarmup)


def test_rewards_that_are_all_tied_and_completions_that_never_end_are_said_once():
    answer = 1.0

    def constant(prompts, completions):
        return [answer] * len(completions)

    trainer = trainer_of(keras.optimizers.SGD(0.01), constant, stop_token_ids=[])
    with pytest.warns(UserWarning, match="of the first 5 steps") as caught:
        fit(trainer, 6)
    messages = [str(warning.message) for warning in caught if "of the first 5 steps" in str(warning.message)]
    assert [message[:12] for message in messages] == ["All rewards ", "No completio"]
    assert "`max_completion_length`=4" in messages[1]

    answer = None
    with pytest.warns(UserWarning, match="The reward has abstained from every completion of the first 5 steps"):
        fit(trainer, 5)
