"""Causal convolution's Triton kernels against the definition: on a CUDA device where there is one, else interpreted."""

import pytest
import torch

from recurrent_gemma.modeling.ops import causal_conv1d
from tests.modeling.ops.test_causal_conv1d import draw, markers
from tests.support import require
from tests.tolerances import assert_close_by_max, backward_tolerance, forward_tolerance

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
require("triton")

WIDTH = 10  # a block of channels and a part of one


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Short rows span several tiles: the interpreter takes its time."""
    from recurrent_gemma.modeling.ops.causal_conv1d import triton as kernels

    monkeypatch.setattr(kernels, "_CHANNELS", 8)
    monkeypatch.setattr(kernels, "_STEPS", 8)


@pytest.mark.parametrize(
    ("taps", "length", "dtype", "starts", "valid", "history"),
    [
        (4, 1, torch.float32, False, False, True),
        (4, 2, torch.bfloat16, True, True, True),
        (4, 3, torch.float32, True, False, True),
        (4, 4, torch.float32, False, True, False),
        (4, 7, torch.float16, True, False, False),
        (4, 8, torch.float32, False, False, False),
        (4, 9, torch.bfloat16, True, False, True),
        (4, 23, torch.float32, True, True, True),
        (1, 9, torch.float32, True, True, True),
        (2, 9, torch.float32, True, True, True),
        (6, 3, torch.float32, True, False, True),
        (10, 9, torch.float32, False, False, True),
    ],
)
def test_kernels_equal_reference_with_every_gradient(taps, length, dtype, starts, valid, history):
    inputs = [t.detach().to(DEVICE) for t in draw(2, length, WIDTH, taps, dtype)][: 4 if history else 3]
    options = dict(zip(("starts", "valid"), markers(2, length, starts, valid), strict=True))
    options = {name: marker if marker is None else marker.to(DEVICE) for name, marker in options.items()}
    weight = torch.randn(2, length, WIDTH, device=DEVICE).to(dtype)
    results = []
    # The reference in fp64: in half precision autograd would add up the weight's gradient in that.
    for impl, precision in (("triton", dtype), ("reference", torch.float64)):
        drawn = [t.to(precision).requires_grad_() for t in inputs]
        y, last = causal_conv1d(*drawn, impl=impl, **options)
        loss = (y * weight.to(precision)).sum() + last.square().sum() + sum(t.sum() for t in drawn)
        results.append([y, last, *torch.autograd.grad(loss, drawn)])
    for index, (actual, expected) in enumerate(zip(*results, strict=True)):
        assert actual.dtype == dtype and actual.shape == expected.shape
        if actual.numel():
            bar = (forward_tolerance if index < 2 else backward_tolerance)(dtype, 2 * length + taps)
            assert_close_by_max(actual, expected, bar, f"result {index}")


def test_tiles_of_one_row_may_be_spread_over_programs_or_not(monkeypatch):
    from recurrent_gemma.modeling.ops.causal_conv1d import triton as kernels

    inputs = [t.detach().to(DEVICE).requires_grad_() for t in draw(3, 27, 5, 4)]
    starts, _ = (m if m is None else m.to(DEVICE) for m in markers(3, 27, True, False))
    results = []
    for programs in (1, 2, 6, 1024):
        monkeypatch.setattr(kernels, "_PROGRAMS", programs)
        y, last = causal_conv1d(*inputs, starts=starts, impl="triton")
        results.append([y, last, *torch.autograd.grad(y.square().sum(), inputs)])
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            assert_close_by_max(actual, expected, backward_tolerance(torch.float32, 81), "spread")


def test_strided_inputs_are_read_as_they_are_and_not_mutated():
    x, weight, bias, history = (t.to(DEVICE) for t in draw(2, 11, 6, 4))
    strided = [t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in (x, weight, history)]
    before = [t.clone() for t in strided]
    y, last = causal_conv1d(strided[0], strided[1], bias, strided[2], impl="triton")
    expected, expected_last = causal_conv1d(x, weight, bias, history, impl="triton")
    assert torch.equal(y, expected) and torch.equal(last, expected_last)
    assert all(torch.equal(a, b) for a, b in zip(before, strided, strict=True))


def test_registered_op_passes_opcheck():
    x, weight, bias, history = (t.detach().to(DEVICE).requires_grad_() for t in draw(1, 2, 2, 2))
    arguments = (x, weight, bias, history, None, None, None, "triton")
    torch.library.opcheck(torch.ops.recurrent_gemma.causal_conv1d.default, arguments)


def test_what_the_kernels_do_not_take_is_refused(monkeypatch):
    x, weight, bias, _ = draw(1, 2, 3, 4)
    with pytest.raises(ValueError, match=r"impl: expected another than 'triton' for torch\.float64"):
        causal_conv1d(x.double(), weight, bias, impl="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match=r"impl: expected another than 'triton' for torch\.float32 on cpu"):
        causal_conv1d(x, weight, bias, impl="triton")
