"""RMS norm: the fused form against the equation, forward and every gradient, and against torch's own."""

import itertools

import pytest
import torch

from recurrent_gemma.modeling.ops import rms_norm
from recurrent_gemma.modeling.ops.rms_norm import fused
from tests.tolerances import assert_close_by_max, backward_tolerance, forward_tolerance

EPS = 1e-6


def draw(shape, dtype, *, grad=False):
    """x and weight."""
    return [torch.randn(s, dtype=torch.float64).to(dtype).requires_grad_(grad) for s in (shape, shape[-1:])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_fused_equals_reference_with_every_gradient(dtype, monkeypatch):
    # Blocks of two rows of 24: whole blocks, a part of one, and a single row.
    monkeypatch.setattr(fused, "_BLOCK_ELEMENTS", 48)
    for shape in ((1, 1, 24), (2, 3, 24), (1, 7, 24), (5, 24), (24,), (2, 3, 5)):
        x, weight = draw(shape, dtype, grad=True)
        upstream = torch.randn(shape).to(dtype)
        results = {}
        for impl in ("reference", "fused"):
            y = rms_norm(x, weight, eps=EPS, impl=impl)
            results[impl] = [y, *torch.autograd.grad((y * upstream).sum(), (x, weight))]
        for index, (actual, expected) in enumerate(zip(results["fused"], results["reference"], strict=True)):
            assert actual.dtype == expected.dtype and actual.shape == expected.shape
            bar = (backward_tolerance if index else forward_tolerance)(dtype, x.numel())
            assert_close_by_max(actual, expected, bar, f"result {index}, {shape}")


def test_equals_torch_rms_norm():
    x, weight = draw((3, 5, 16), torch.float32)
    expected = torch.nn.functional.rms_norm(x, (16,), 1 + weight, EPS)
    assert_close_by_max(rms_norm(x, weight, eps=EPS), expected, forward_tolerance(torch.float32, 16), "y")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    x, weight = draw((5, 24), dtype)
    for impl in ("reference", "fused"):
        wide = rms_norm(x.float(), weight.float(), eps=EPS, impl=impl)
        assert torch.equal(rms_norm(x, weight, eps=EPS, impl=impl), wide.to(dtype))


def test_gradients_agree_with_finite_differences():
    assert torch.autograd.gradcheck(lambda *args: rms_norm(*args, eps=EPS), draw((2, 3, 4), torch.float64, grad=True))


def test_rows_of_zeros_and_weights_near_minus_one_are_exact():
    weight = torch.tensor([-1.0, -1.0 + 2**-20, 0.0])
    assert torch.equal(rms_norm(torch.zeros(2, 3), weight, eps=EPS), torch.zeros(2, 3))
    x = torch.tensor([[3.0, -4.0, 5.0]])
    expected = x.double() / (x.double().square().mean() + EPS).sqrt() * (1 + weight.double())
    torch.testing.assert_close(rms_norm(x, weight, eps=EPS).double(), expected, rtol=1e-6, atol=0)


def test_inputs_are_not_changed_and_need_not_be_contiguous():
    x, weight = draw((4, 6, 8), torch.float32)
    strided = x.transpose(0, 1)
    for grad, impl in itertools.product((False, True), ("fused", "reference")):
        taken = strided.detach().requires_grad_(grad)
        before = x.clone()
        y = rms_norm(taken, weight, eps=EPS, impl=impl)
        torch.testing.assert_close(y, rms_norm(taken.contiguous(), weight, eps=EPS, impl=impl))
        assert torch.equal(x, before)
        if grad:
            (gradient,) = torch.autograd.grad(y.sum(), taken)
            (expected,) = torch.autograd.grad(rms_norm(taken, weight, eps=EPS, impl="reference").sum(), taken)
            assert_close_by_max(gradient, expected, backward_tolerance(torch.float32, 8), "grad")


def test_second_derivatives_are_those_of_the_equation():
    inputs = draw((2, 3), torch.float64, grad=True)
    assert torch.autograd.gradgradcheck(lambda *args: rms_norm(*args, eps=EPS), inputs)


# torch 2.13 itself, when forward mode is first used.
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_forward_mode_derivatives_are_refused():
    x, weight = draw((2, 4), torch.float64)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(NotImplementedError, match="rms_norm: forward-mode"):
            rms_norm(dual, weight, eps=EPS)


def test_compiled_and_transformed_calls_take_the_reference():
    x, weight = draw((2, 4), torch.float32)
    compiled = torch.compile(lambda *args: rms_norm(*args, eps=EPS), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x, weight), rms_norm(x, weight, eps=EPS, impl="reference"))
    mapped = torch.func.vmap(lambda row: rms_norm(row, weight, eps=EPS))(x)
    torch.testing.assert_close(mapped, rms_norm(x, weight, eps=EPS))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.ones(2, 4, dtype=torch.long)}, TypeError, "x: expected a floating-point tensor"),
        ({"weight": torch.ones(3)}, ValueError, r"weight: expected shape \(D,\) = \(4,\), got \(3,\)"),
        ({"impl": "fast"}, ValueError, "impl: expected one of .* for rms_norm, got 'fast'"),
    ],
)
def test_errors_name_field_expected_and_actual(change, error, message):
    arguments = {"x": torch.ones(2, 4), "weight": torch.ones(4), "impl": None} | change
    with pytest.raises(error, match=message):
        rms_norm(arguments["x"], arguments["weight"], eps=EPS, impl=arguments["impl"])
