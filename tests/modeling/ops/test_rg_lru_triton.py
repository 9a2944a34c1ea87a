"""RG-LRU's Triton kernels against the equations: on a CUDA device where there is one, else in Triton's interpreter."""

import itertools

import pytest
import torch

from recurrent_gemma.modeling.ops import rg_lru
from tests.modeling.ops.test_rg_lru import draw, markers
from tests.support import require
from tests.tolerances import assert_close_by_max, backward_tolerance, forward_tolerance

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
require("triton")

# One step, parts of a tile of 64, and more than one.
LENGTHS = (1, 3, 67)
WIDTH = 20  # a block of 16 channels and a part of one


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("starts", "valid", "h0"), [(False, False, False), (True, True, True), (False, True, True)])
def test_kernels_equal_reference_with_every_gradient(length, starts, valid, h0):
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [t.detach().to(DEVICE).requires_grad_() for t in draw(2, length, WIDTH, dtype)[: 5 if h0 else 4]]
        starts_BL, valid_BL = (m if m is None else m.to(DEVICE) for m in markers(2, length, starts, valid))
        options = {"starts": starts_BL, "valid": valid_BL}
        weight = torch.randn(2, length, WIDTH, device=DEVICE)
        results = []
        for impl in ("triton", "reference"):
            for tensor in inputs:
                tensor.grad = None
            y, h_last = rg_lru(*inputs, impl=impl, **options)
            ((y * weight.to(y.dtype)).sum() + h_last.sin().sum()).backward()
            results.append([y, h_last, *(tensor.grad for tensor in inputs)])
        for index, (actual, expected) in enumerate(zip(*results, strict=True)):
            bar = forward_tolerance if index < 2 else backward_tolerance
            assert actual.dtype == expected.dtype
            assert_close_by_max(actual, expected, bar(dtype, length), f"{index} {dtype}")


def test_extreme_decays_are_exact_to_rounding():
    # a from 1e-30 to 1 - 1e-7: neither the series nor the exponential may lose 1 - a^2.
    a_param = torch.linspace(-17, 9, WIDTH, device=DEVICE)
    x, gate = (torch.randn(1, 5, WIDTH, device=DEVICE) for _ in range(2))
    for recurrence_gate in (torch.full_like(x, 9.0), torch.full_like(x, -12.0)):
        actual, expected = (rg_lru(x, gate, recurrence_gate, a_param, impl=impl)[0] for impl in ("triton", "reference"))
        for channel in range(WIDTH):  # each by its own size
            assert_close_by_max(
                actual[..., channel], expected[..., channel], forward_tolerance(torch.float32, 5), f"channel {channel}"
            )


def test_states_of_a_split_row_go_on():
    x, i, r, a_param, h0 = (t.to(DEVICE) for t in draw(1, 70, WIDTH))
    whole, last, states = rg_lru(x, i, r, a_param, h0, return_states=True, impl="triton")
    first, middle = rg_lru(x[:, :41], i[:, :41], r[:, :41], a_param, h0, impl="triton")
    second, end = rg_lru(x[:, 41:], i[:, 41:], r[:, 41:], a_param, middle, impl="triton")
    assert_close_by_max(torch.cat((first, second), dim=1), whole, forward_tolerance(torch.float32, 70), "split")
    assert_close_by_max(end, last, forward_tolerance(torch.float32, 70), "last state")
    assert torch.equal(states[:, -1], last)


def test_what_the_kernels_do_not_take_is_refused(monkeypatch):
    x = torch.zeros(1, 2, 3)
    gates = itertools.repeat(torch.zeros(1, 2, 3, dtype=torch.float64), 2)
    with pytest.raises(ValueError, match=r"impl: expected another than 'triton' for torch\.float64"):
        rg_lru(x.double(), *gates, torch.zeros(3).double(), impl="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match=r"impl: expected another than 'triton' for torch\.float32 on cpu"):
        rg_lru(x, x, x, torch.zeros(3), impl="triton")
