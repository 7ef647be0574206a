"""What Torch records and replays: the operations on tensors, without the Python around them."""

import keras
import numpy as np
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
