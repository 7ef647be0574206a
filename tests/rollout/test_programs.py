"""Calls of a compiled program at the same time."""

import threading

import keras
import numpy as np
import pytest
from keras import ops

from keras_bond.rollout.devices import fewest_rows, is_readable, on_one_cpu
from keras_bond.rollout.functional import Program, in_threads


def test_calls_side_by_side_are_of_threads_and_return_in_their_order(to_numpy):
    threads = set()

    def function(x):
        threads.add(threading.get_ident())
        return 2 * x

    values = [ops.ones((1,)), ops.full((2,), 3.0)]
    for result, value in zip(in_threads(Program(function), [(v,) for v in values]), values, strict=True):
        np.testing.assert_array_equal(to_numpy(result), 2 * to_numpy(value))
    assert threading.get_ident() not in threads


def test_an_error_in_one_of_them_is_raised():
    def function(x):
        if x.shape[0] > 1:
            raise ZeroDivisionError("the second")
        return x

    with pytest.raises(ZeroDivisionError, match="the second"):
        in_threads(Program(function), [(ops.ones((1,)),), (ops.ones((2,)),)])


def test_where_a_tensor_is(xla_for_cpus):
    """On this machine; and nowhere while a program is traced."""
    seen = []
    value = ops.ones((1,))
    Program(lambda x: seen.append((on_one_cpu(x), is_readable(x))) or x)(value)
    assert seen == [(False, keras.config.backend() == "torch")]
    assert is_readable(value)
    assert fewest_rows(value) == (64 if on_a_gpu() else 4)
    assert on_one_cpu(value) == (keras.config.backend() != "torch" and not on_a_gpu())


def on_a_gpu():
    if keras.config.backend() == "torch":
        return ops.ones((1,)).is_cuda
    if keras.config.backend() == "jax":
        return False  # `xla_for_cpus`
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))
