"""What Torch records and replays: the operations on tensors, without the Python around them."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_bond.rollout.functional import Recorded

RECORDS = keras.config.backend() == "torch"


def test_a_function_is_run_once_for_every_signature(to_numpy):
    calls = []

    def add(pair, scale):
        calls.append(len(pair))
        return pair[0] + scale * pair[1]

    add, (one, two) = Recorded(add), (ops.convert_to_tensor([float(i)] * 3) for i in (1, 2))
    for a, b, scale in ((one, two, 10.0), (two, one, 3.0), (one[:2], two[:2], 1.0)):
        result = add([a, b], ops.convert_to_tensor(scale))
        np.testing.assert_array_equal(to_numpy(result), to_numpy(a) + scale * to_numpy(b))
    assert len(calls) == (2 if RECORDS else 3)


def test_a_tensor_that_is_no_argument_is_read_where_it_was(to_numpy):
    variable = keras.Variable([1.0, 2.0], trainable=False)
    add = Recorded(lambda x: x + variable)
    for value in ([1.0, 2.0], [5.0, 6.0]):
        variable.assign(value)
        np.testing.assert_array_equal(to_numpy(add(ops.ones((2,)))), np.array(value) + 1)


def test_a_function_that_reads_a_tensor_on_the_host_stays_eager(to_numpy):
    first = Recorded(lambda x: x[: int(x[0])])
    for values in ([1, 8, 9], [2, 8, 9]):
        np.testing.assert_array_equal(to_numpy(first(ops.convert_to_tensor(values))), values[: values[0]])


@pytest.mark.parametrize("read_on_the_host", [False, True])
def test_a_loop_ends_where_its_condition_says(read_on_the_host, to_numpy):
    """x <- a x + b from x = 1, with a = 3 and b = 1: x_i = (3^(i + 1) - 1) / 2. On a GPU Torch replays a CUDA graph."""
    if read_on_the_host and not RECORDS:
        pytest.skip("compilers cannot read a tensor")

    def iterate(factors, offset, i, x, pair):
        scale = float(factors[0]) if read_on_the_host else factors[0]
        return i + 1, scale * x + offset, [pair[1], pair[0]]

    loop = Recorded(iterate)
    for steps in (1, 2, 5):
        fixed = [ops.convert_to_tensor([3.0]), ops.convert_to_tensor(1.0)]
        state = (ops.convert_to_tensor(0), ops.ones((2,)), [ops.zeros((1,)), ops.ones((1,))])
        i, x, pair = loop.repeat(lambda i, x, pair, steps=steps: i < steps, fixed, state)
        assert int(i) == steps
        np.testing.assert_array_equal(to_numpy(x), [(3 ** (steps + 1) - 1) / 2] * 2)
        np.testing.assert_array_equal([float(to_numpy(p)[0]) for p in pair], [steps % 2, 1 - steps % 2])
