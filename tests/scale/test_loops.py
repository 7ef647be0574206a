import keras
import pytest

if keras.config.backend() != "jax":
    pytest.skip("keras_bond.scale is JAX's", allow_module_level=True)

import jax
import jax.numpy as jnp

from keras_bond.scale.loops import loop_factor


def factor(function, *shapes):
    return loop_factor(jax.make_jaxpr(function)(*(jnp.ones(shape) for shape in shapes)))


def test_without_loops_it_is_one():
    assert factor(lambda x: x @ x, (3, 3)) == 1
    assert factor(lambda x: x + x, (3, 3)) == 1


def test_a_loop_counts_as_often_as_it_runs():
    def loop(x):
        return jax.lax.map(lambda row: row @ row, x)

    assert factor(loop, (8, 2, 2)) == 8
    assert factor(lambda x: loop(x).sum() + (x[0] @ x[0]).sum(), (8, 2, 2)) == 9 / 2
    assert factor(jax.jit(lambda x: jax.lax.map(loop, x)), (4, 8, 2, 2)) == 32


def test_a_backward_pass_and_what_it_computes_anew():
    def loss(x):
        return jax.lax.map(jax.checkpoint(lambda row: (row @ row).sum()), x).sum()

    assert factor(jax.grad(loss), (8, 2, 2)) == 8


def test_products_count_by_their_sizes():
    def two(x, y):  # 2 * 4 * 4 * 4 once, 2 * 4 * 4 * 8 in each of 3 runs
        return x @ x, jax.lax.map(lambda z: z @ z.T, y)

    assert factor(two, (4, 4), (3, 4, 8)) == (128 + 3 * 256) / (128 + 256)


def test_a_loop_that_ends_on_a_condition_counts_once():
    assert factor(lambda x: jax.lax.while_loop(lambda y: y.sum() < 100, lambda y: y @ y, x), (2, 2)) == 1
