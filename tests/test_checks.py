"""Numbers of other types are taken for what they are, and stored as Python's own."""

import json

import numpy as np
import pytest
from keras import ops

from keras_bond._checks import check_at_least, check_not_negative, check_number, check_positive, check_share


@pytest.mark.parametrize(
    "convert", [int, np.int64, np.int32, np.uint8, np.array, lambda n: ops.convert_to_tensor(n, "int32")]
)
def test_an_integer_of_any_type_becomes_an_int(convert):
    n = check_at_least(2, n=convert(3))
    assert (type(n), n) == (int, 3)
    assert json.dumps(check_at_least(1, n=convert(3), m=2)) == "[3, 2]"
    with pytest.raises(ValueError, match=r"`n` must be an integer of at least 4\. Received: n="):
        check_at_least(4, n=convert(3))


@pytest.mark.parametrize("value", [True, np.True_, 2.0, np.float32(2), "2", None, [2], np.array([2, 2]), np.nan, 2 + 0j])
def test_what_is_no_integer_is_refused(value):
    with pytest.raises(ValueError, match=r"`n` must be an integer of at least 1\. Received: n="):
        check_at_least(1, n=value)


@pytest.mark.parametrize("convert", [float, np.float64, np.float32, np.float16, np.array, ops.convert_to_tensor])
def test_a_number_of_any_type_becomes_a_float(convert):
    for check in (check_share, check_not_negative, check_positive):
        beta = check(beta=convert(0.5))
        assert (type(beta), beta) == (float, 0.5)
    assert type(check_share(beta=1)) is float


@pytest.mark.parametrize("value", ["0.5", b"1", None, True, [0.5, 0.5], np.array([0.5, 0.5]), np.nan, -1, {}])
def test_what_is_no_number_in_range_is_refused(value):
    for check, expected in (
        (check_share, "lie in [0, 1]"),
        (check_not_negative, "be at least 0"),
        (check_positive, "be above 0"),
    ):
        with pytest.raises(ValueError) as error:
            check(beta=value)
        assert str(error.value) == f"`beta` must {expected}. Received: beta={value!r}"


def test_the_message_says_what_was_expected():
    with pytest.raises(ValueError, match=r"`eta` must lie in \(0, 1\]. Received: eta=0"):
        check_number("lie in (0, 1]", lambda eta: 0 < eta <= 1, eta=0)
