"""The few widths and numbers of rows: each holds what it must, wastes little, and they are few."""

import itertools
import math

import pytest

from keras_bond.rollout.lengths import bucket, row_sizes, segments


@pytest.mark.parametrize("budget", [1, 7, 24, 256, 1000])
def test_a_bucket_holds_the_length_and_wastes_a_third_at_most(budget):
    widths = [bucket(length, budget) for length in range(budget + 1)]
    for length, width in enumerate(widths):
        assert length <= width <= budget
        assert width <= max(8, 1.5 * length)
    assert widths == sorted(widths)
    assert len(set(widths)) <= 2 + 2 * max(math.log2(budget / 8), 0)


@pytest.mark.parametrize("budget", [1, 32, 33, 43, 64, 250, 1024])
def test_segments_end_at_the_budget_and_are_few(budget):
    widths = segments(budget)
    assert widths[-1] == budget
    assert all(4 / 3 <= wider / width for width, wider in itertools.pairwise(widths))
    assert all(wider / width <= 2.7 for width, wider in itertools.pairwise(widths))
    assert len(widths) <= 2 + math.log2(max(budget / 32, 1))
    assert budget > 32 or len(widths) == 1


@pytest.mark.parametrize("fewest", [4, 64])
@pytest.mark.parametrize("rows", [1, 3, 4, 8, 20, 192, 1000])
def test_a_batch_shrinks_to_a_half_or_less_and_not_below_the_fewest(rows, fewest):
    first, *smaller, last = row_sizes(rows, fewest)
    assert (first, last) == (rows, 0)
    assert all(fewest <= fewer <= size / 2 for size, fewer in itertools.pairwise([rows, *smaller]))
    assert all(size == 4 * fewer for size, fewer in itertools.pairwise(smaller))
    assert all(rows < 8 * size for size in smaller[:1])
    assert len(smaller) <= math.log(max(rows, fewest) / fewest, 4) + 1
