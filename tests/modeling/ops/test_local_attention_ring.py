"""Attention over a ring: the same as over columns in order, whatever the ring's turn."""

import itertools

import pytest
import torch

from recurrent_gemma.modeling.ops.local_attention import (
    local_attention,
    local_attention_ring_,
    ring_to_window,
    window_to_ring,
)
from tests.tolerances import assert_close_by_max, forward_tolerance

# B, H, G, D, W
SHAPES = ((1, 4, 1, 8, 4), (2, 4, 2, 8, 1), (3, 2, 2, 4, 7))


def draw(batch, heads, groups, width, length, dtype=torch.float64):
    shapes = [(batch, heads, length, width), *[(batch, groups, length, width)] * 2]
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("pads", "documents"), list(itertools.product((False, True), repeat=2)))
def test_it_equals_the_reference_over_columns_in_order(shape, dtype, pads, documents):
    batch, heads, groups, width, window = shape
    past, position = None, torch.zeros(batch, dtype=torch.long)
    empty = torch.zeros(batch, groups, 0, width, dtype=dtype)
    ring = [window_to_ring(empty, window), window_to_ring(empty, window), torch.full((batch,), window)]
    for length in (1, 1, window, 1, 1, 1, window + 3, 1, 2, *[1] * (2 * window + 3)):
        inputs = draw(batch, heads, groups, width, length, dtype)
        options = {
            "past_length": position,
            "starts": torch.rand(batch, length) < 0.2 if documents else None,
            "valid": torch.rand(batch, length) < 0.7 if pads else None,
        }
        before = [t.clone() for t in ring]
        expected, *past_after = local_attention(
            *(t.double() for t in inputs),
            *((None, None) if past is None else past),
            window=window,
            impl="reference",
            **{**options, "past_length": position if past is not None else None},
        )
        actual, *ring_after = local_attention_ring_(*inputs, *ring, **options)
        assert_close_by_max(actual, expected, 2 * forward_tolerance(dtype, window + 1), f"{length} tokens")
        assert actual.dtype == dtype
        # Columns in order, where tokens fill them.
        count = past_after[0].shape[2]
        valid = torch.ones(batch, length, dtype=torch.bool) if options["valid"] is None else options["valid"]
        for row in range(batch):
            for t in range(length):
                if valid[row, t]:
                    starts = options["starts"]
                    position[row] = 1 if starts is not None and starts[row, t] else position[row] + 1
            live = min(count, int(position[row]))
            for kept, ordered in zip(ring_after[:2], past_after, strict=True):
                columns = ring_to_window(kept, ring_after[2])[row]
                assert torch.equal(
                    columns[:, window - live :].double(), ordered[row, :, count - live :].to(dtype).double()
                )
        # Only a single token is written early, and only where nobody looks.
        if length == 1:
            assert all(a is b for a, b in zip(ring_after[:2], ring[:2], strict=True))
            for kept, old in zip(ring[:2], before[:2], strict=True):
                assert torch.equal(ring_to_window(kept, before[2]), ring_to_window(old, before[2]))
        else:
            assert all(torch.equal(a, b) for a, b in zip(ring, before, strict=True))
        past, ring = past_after, ring_after


@pytest.mark.parametrize("count", [0, 1, 4])
def test_windows_become_rings_and_come_back(count):
    columns = torch.randn(2, 1, count, 3)
    ring = window_to_ring(columns, 4)
    assert ring.shape == (2, 1, 5, 3)
    assert torch.equal(ring_to_window(ring, torch.full((2,), 4))[:, :, 4 - count :], columns)


def test_the_reference_can_be_forced_and_other_shapes_are_refused():
    inputs, window = draw(2, 4, 1, 8, 1), 3
    ring = [*draw(2, 4, 1, 8, window + 1)[1:], torch.tensor([1, 3])]
    length = torch.tensor([3, 2])
    expected, *_ = local_attention_ring_(*inputs, *(t.clone() for t in ring), past_length=length)
    actual, *_ = local_attention_ring_(*inputs, *(t.clone() for t in ring), past_length=length, impl="reference")
    assert_close_by_max(actual, expected, forward_tolerance(torch.float64, window + 1), "forced reference")
    with pytest.raises(ValueError, match=r"ring_value: expected shape \(B, G, W \+ 1, D\)"):
        local_attention_ring_(*inputs, ring[0], ring[1][:, :, 1:], ring[2], past_length=length)
