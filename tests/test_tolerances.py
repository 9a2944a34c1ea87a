"""The comparisons themselves: what must not pass does not pass."""

import math

import pytest
import torch

from tests.tolerances import (
    assert_close,
    assert_close_by_max,
    backward_tolerance,
    forward_tolerance,
    max_difference,
    relative_to_max,
    root_mean_square_error,
)

EXPECTED = torch.tensor([1.0, -4.0, 0.0])


def test_differences_are_measured_against_the_largest_expected_value():
    actual = EXPECTED + torch.tensor([0.0, 0.0, 0.5])
    assert max_difference(actual, EXPECTED) == 0.5
    assert relative_to_max(actual, EXPECTED) == 0.125
    assert root_mean_square_error(actual, EXPECTED) == pytest.approx(0.5 / math.sqrt(3))
    assert relative_to_max(torch.tensor([0.5]), torch.tensor([0.0])) == 0.5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("compare", [assert_close, assert_close_by_max])
def test_values_that_are_not_finite_never_pass(compare, value: float):
    broken = torch.tensor([1.0, value])
    for pair in ((broken, torch.ones(2)), (torch.ones(2), broken), (broken, broken)):
        with pytest.raises(AssertionError, match="exceeds"):
            compare(*pair, 1e9, "name")


@pytest.mark.parametrize("compare", [assert_close, assert_close_by_max])
def test_other_shapes_and_empty_tensors_never_pass(compare):
    with pytest.raises(AssertionError, match="shapes differ"):
        compare(torch.zeros(3, 1), torch.zeros(3), 1.0, "name")
    with pytest.raises(AssertionError, match="empty"):
        compare(torch.zeros(0), torch.zeros(0), 1.0, "name")


def test_derived_bars_follow_the_dtype_and_the_length_of_the_sum():
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    bars = [forward_tolerance(dtype, terms=64) for dtype in dtypes]
    assert bars == sorted(bars)
    assert bars[1] == 64 * 2**-23
    assert bars[3] == 64 * 2**-23 + 2**-7
    assert all(backward_tolerance(dtype, 64) == 4 * bar for dtype, bar in zip(dtypes, bars, strict=True))
