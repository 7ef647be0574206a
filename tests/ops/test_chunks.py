"""A part at a time: the values and gradients of the whole, in a fraction of its memory."""

import re

import keras
import numpy as np
import pytest
import tiny
from keras import ops

from keras_bond.ops import in_chunks, in_turns, sequence_kl, smallest_divisor, token_kl
from keras_bond.rollout import Rollout, rollout
from keras_bond.trainers.backend import gradient


def test_the_smallest_divisor():
    for number in range(1, 40):
        for at_least in (0.1, 1, 2.5, 7, number, number + 1):
            divisors = [d for d in range(1, number + 1) if number % d == 0 and d >= at_least]
            assert smallest_divisor(number, at_least) == min(divisors, default=number)


@pytest.mark.parametrize("count", [1, 2, 6])
def test_values_keep_their_rows_and_gradients(count, to_numpy):
    x, factors = np.random.default_rng(0).standard_normal((2, 6, 3)).astype("float32")
    arrays = [ops.convert_to_tensor(array) for array in (x, factors)]

    def function(x, factors):
        return ops.sin(x * factors), ops.sum(x, axis=1)

    sines, sums = map(to_numpy, in_chunks(function, arrays, count))
    np.testing.assert_allclose(sines, np.sin(x * factors), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(sums, x.sum(axis=1), rtol=1e-6, atol=1e-6)
    slope = gradient(lambda value: ops.sum(in_chunks(function, [value, arrays[1]], count)[0]), arrays[0])
    np.testing.assert_allclose(to_numpy(slope), factors * np.cos(x * factors), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("in_parts", [in_chunks, in_turns])
def test_it_computes_a_part_at_a_time(in_parts, to_numpy):
    rows, values = [], np.arange(24.0, dtype="float32").reshape(12, 2)

    def function(x, y):
        rows.append((x.shape[0], y.shape[0]))
        return {"sums": [x + y], "first": y[:, 0]}

    found = in_parts(function, [ops.convert_to_tensor(values), ops.convert_to_tensor(-2 * values)], 4)
    assert set(rows) == {(3, 3)}
    assert in_parts is in_chunks or len(rows) == 4
    np.testing.assert_array_equal(to_numpy(found["sums"][0]), -values)
    np.testing.assert_array_equal(to_numpy(found["first"]), -2 * values[:, 0])


@pytest.mark.parametrize("count", [2, 6])
def test_variables_have_their_gradients(count):
    variable = keras.Variable(np.random.default_rng(2).standard_normal((3, 5)).astype("float32"))
    x = np.random.default_rng(3).standard_normal((6, 3)).astype("float32")
    rows = ops.arange(6)  # whole numbers, which have no gradient

    def function(x, rows):
        return ops.sin(ops.matmul(x, variable)) * ops.cast(ops.expand_dims(rows, 1), "float32")

    def loss(value):
        return ops.sum(in_chunks(function, [value, rows], count))

    expected = x.T @ (np.cos(x @ ops.convert_to_numpy(variable)) * np.arange(6)[:, None])
    slope = ops.convert_to_numpy(gradient_of_variable(loss, x, variable))
    np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-5)


def gradient_of_variable(loss, x, variable):
    x = ops.convert_to_tensor(x)
    if keras.config.backend() == "jax":
        import jax

        def stateless(value):
            with keras.StatelessScope(state_mapping=[(variable, value)]):
                return loss(x)

        return jax.grad(stateless)(variable.value)
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            result = loss(x)
        return tape.gradient(result, variable.value)
    loss(x).backward()
    return variable.value.grad


@pytest.mark.skipif(keras.config.backend() == "torch", reason="reads XLA's program")
def test_no_array_of_the_program_has_all_rows_of_what_a_part_computes():
    width, rows = 37, 24
    kernel = np.random.default_rng(4).standard_normal((3, width)).astype("float32")

    def function(x, ids):
        return ops.sum(ops.sin(ops.matmul(x, kernel)), axis=1)

    def wide(count):
        """The shapes of all arrays with what `function` computes on its way."""

        def slope(value):
            return gradient(lambda x: ops.sum(in_chunks(function, [x, ops.arange(rows)], count) ** 2), value)

        text = xla_program(slope, ops.ones((rows, 3)))
        shapes = [tuple(map(int, dimensions.split(","))) for dimensions in re.findall(r"f32\[([\d,]+)\]", text)]
        return [shape for shape in shapes if width in shape and 3 not in shape]

    assert (rows, width) in wide(1)
    assert {max(np.prod(shape) for shape in wide(count)) // width for count in (6, 12)} == {4, 2}
    assert len(wide(6)) == len(wide(12))  # a loop: its parts are computed one after another


def xla_program(function, value):
    """The optimised program, as text."""
    if keras.config.backend() == "jax":
        import jax

        return jax.jit(function).lower(value).compile().as_text()
    import tensorflow as tf

    compiled = tf.function(function, jit_compile=True)
    return compiled.experimental_get_compiler_ir(value)(stage="optimized_hlo")


def test_the_kl_of_a_token_sums_to_that_of_the_sequence(to_numpy):
    logits, reference = np.random.default_rng(1).standard_normal((2, 4, 5, 7)).astype("float32")
    p, q = (np.exp(x / 0.5) / np.exp(x / 0.5).sum(-1, keepdims=True) for x in (logits, reference))
    expected = (p * np.log(p / q)).sum(-1)
    of_tokens, of_sequences = token_kl(logits, reference, 0.5), sequence_kl(logits, reference, np.ones((4, 5)), 0.5)
    np.testing.assert_allclose(to_numpy(of_tokens), expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(to_numpy(of_sequences), expected.sum(1), rtol=2e-5, atol=1e-6)


@pytest.mark.usefixtures("xla_for_cpus")
@pytest.mark.skipif(keras.config.backend() != "jax", reason="asks XLA how much memory the compiled gradient takes")
def test_log_probs_and_their_gradient_never_hold_the_vocabulary(monkeypatch):
    import jax
    from keras_hub import models

    vocabulary, batch, length = 8192, 8, 64
    policy = tiny.causal_lm()
    sizes = {"num_layers": 1, "num_query_heads": 1, "num_key_value_heads": 1, "hidden_dim": 16, "intermediate_dim": 16}
    backbone = models.GemmaBackbone(vocabulary_size=vocabulary, head_dim=8, **sizes)
    scored = Rollout(models.GemmaCausalLM(backbone, policy.preprocessor), 4, length)
    ids = np.ones((batch, length), "int32")

    def temporary_bytes(logits_at_once):
        monkeypatch.setattr(rollout, "LOGITS_AT_ONCE", logits_at_once)

        def loss(weights):
            scope = keras.StatelessScope(state_mapping=list(zip(backbone.trainable_variables, weights, strict=True)))
            with scope:
                return ops.sum(scored.token_log_probs(ids[:, :4], ids[:, :4], ids))

        weights = [v.value for v in backbone.trainable_variables]
        return jax.jit(jax.grad(loss)).lower(weights).compile().memory_analysis().temp_size_in_bytes

    assert 8 * temporary_bytes(batch * vocabulary) < temporary_bytes(2**40)
