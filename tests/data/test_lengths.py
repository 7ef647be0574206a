import numpy as np
import pytest

from keras_bond.data import Fitting, bucket, pad_left

pytestmark = pytest.mark.any_backend


def test_buckets_hold_what_they_are_asked_for_and_are_few():
    for limit in (1, 7, 8, 100, 1024):
        widths = {bucket(length, limit) for length in range(1, limit + 1)}
        assert all(length <= bucket(length, limit) <= limit for length in range(1, limit + 1))
        assert len(widths) <= 2 * max(np.log2(limit / 8), 0) + 2
        assert all(bucket(length, limit) <= max(8, 1.5 * length) for length in range(1, limit + 1))


def test_rows_end_in_the_last_column():
    ids, mask = pad_left([[1, 2], [3]], 3, pad_id=9)
    assert ids.tolist() == [[9, 1, 2], [9, 9, 3]]
    assert mask.tolist() == [[0, 1, 1], [0, 0, 1]]


ROWS = [[2, 5], [2, 5, 6, 7, 8], [2, 1, 3, 4]]
TEXTS = ["a", "bcde", "fgh"]


def test_a_long_prompt_keeps_its_end_and_the_start_token():
    fitting = Fitting(3, "cut")
    assert fitting(ROWS, TEXTS) == ([0, 1, 2], [[2, 5], [2, 7, 8], [2, 3, 4]])
    assert fitting.report() == (
        "2 of 3 prompts had more tokens than `max_prompt_length`=3, the longest 5: their beginning was cut."
    )
    assert Fitting(1, "cut")(ROWS, TEXTS)[1] == [[2], [2], [2]]


def test_a_long_prompt_is_dropped_and_counted():
    fitting = Fitting(4, "drop")
    assert fitting(ROWS, TEXTS) == ([0, 2], [ROWS[0], ROWS[2]])
    fitting(ROWS[:1], TEXTS[:1])
    assert fitting.report().startswith("1 of 4 prompts had more tokens than `max_prompt_length`=4, the longest 5: they were")
    assert Fitting(5, "drop").report() is None


def test_the_error_says_how_many_how_long_and_which_first():
    with pytest.raises(ValueError, match=r"2 of 3 prompts have up to 5 tokens .* `max_prompt_length`=3.* at row 1: 'bcde'"):
        Fitting(3)(ROWS, TEXTS)
    with pytest.raises(ValueError, match=r"Prompt 1 has 5 tokens .* more than `max_prompt_length`=4.*Received: 'bcde'"):
        Fitting(4)(ROWS, TEXTS)
    fitting = Fitting(4)
    fitting(ROWS[:1], TEXTS[:1])
    with pytest.raises(ValueError, match="Prompt 2 has 5 tokens"):
        fitting(ROWS, TEXTS)
    with pytest.raises(ValueError, match=r"`long_prompts` must be one of error, cut, drop\. Received: 'left'"):
        Fitting(4, "left")
