"""The pieces of a decoder's pass: what is written to a cache, and sums in float16."""

import numpy as np
import pytest
from keras import ops

from keras_bond.rollout.decoder import add, write_columns


@pytest.mark.parametrize("index", [0, 1, 3, 4, ops.convert_to_tensor(1, "int32")], ids=str)
def test_columns_are_written_and_the_others_stay(index, to_numpy):
    array, values = np.arange(24.0, dtype="float32").reshape(2, 4, 3), -np.ones((2, 2, 3), "float32")
    expected = np.concatenate([array, np.zeros((2, 2, 3))], axis=1)
    at = int(to_numpy(index))
    expected[:, at : at + 2] = values
    found = write_columns(ops.convert_to_tensor(array), index, ops.convert_to_tensor(values))
    np.testing.assert_array_equal(to_numpy(found), expected[:, : max(4, at + 2)])  # of an int, also new ones


def test_in_float16_a_sum_stays_finite(to_numpy):
    half, single = (
        [ops.convert_to_tensor(x, dtype) for x in ([6e4, -6e4], [6e4, -1e4])] for dtype in ("float16", "float32")
    )
    np.testing.assert_array_equal(to_numpy(add(*half)), np.array([65504, -65504], "float16"))
    np.testing.assert_array_equal(to_numpy(add(*single)), np.array([120000, -70000], "float32"))
