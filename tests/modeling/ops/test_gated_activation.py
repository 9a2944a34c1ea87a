"""Gated activation: the backward in blocks against autograd through the equation."""

import pytest
import torch
import torch.nn.functional as F

from recurrent_gemma.modeling.ops import gated_activation
from recurrent_gemma.modeling.ops.gated_activation import blocked
from tests.tolerances import assert_close_by_max, backward_tolerance


def gelu(x):
    return F.gelu(x, approximate="tanh")


def draw(shape, dtype=torch.float32, *, grad=False):
    """gate and x."""
    return [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_(grad) for _ in range(2)]


@pytest.mark.parametrize("activation", [gelu, F.silu, torch.relu, lambda x: x])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_blocked_equals_reference_with_every_gradient(dtype, activation, monkeypatch):
    monkeypatch.setattr(blocked, "_BLOCK_ELEMENTS", 7)  # whole blocks and a part of one
    for shape in ((2, 3, 5), (1, 1, 4), (3,)):
        inputs = draw(shape, dtype, grad=True)
        upstream = torch.randn(shape).to(dtype)
        results = {}
        for impl in ("reference", "blocked"):
            y = gated_activation(*inputs, activation, impl=impl)
            results[impl] = [y, *torch.autograd.grad((y * upstream).sum(), inputs)]
        assert torch.equal(results["blocked"][0], results["reference"][0])
        for index in (1, 2):
            actual, expected = results["blocked"][index], results["reference"][index]
            assert actual.dtype == expected.dtype
            assert_close_by_max(actual, expected, backward_tolerance(dtype, 2), f"gradient {index}")


def test_gradients_of_strided_inputs_and_of_one_input():
    gate, x = draw((4, 6), torch.float64)
    upstream = torch.randn(6, 4, dtype=torch.float64)
    for wanted in ([0], [1], [0, 1]):
        inputs = [t.t().detach().requires_grad_(i in wanted) for i, t in enumerate((gate, x))]
        gradients = [
            torch.autograd.grad(
                (gated_activation(*inputs, gelu, impl=impl) * upstream).sum(), [inputs[i] for i in wanted]
            )
            for impl in ("blocked", "reference")
        ]
        for actual, expected in zip(*gradients, strict=True):
            assert_close_by_max(actual, expected, backward_tolerance(torch.float64, 2), f"{wanted}")


def test_first_and_second_derivatives_agree_with_finite_differences():
    inputs = draw((2, 3), torch.float64, grad=True)
    assert torch.autograd.gradcheck(lambda *args: gated_activation(*args, gelu), inputs)
    assert torch.autograd.gradgradcheck(lambda *args: gated_activation(*args, gelu), inputs)


def test_keeps_its_inputs_alone():
    inputs, kept = draw((5, 8), grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        gated_activation(*inputs, gelu)
    assert [t.data_ptr() for t in kept] == [t.data_ptr() for t in inputs]


def test_blocks_are_the_default_where_a_gradient_is_wanted_unless_torch_transforms_the_call():
    for wanted in ((True, False), (False, True)):
        inputs = [t.requires_grad_(w) for t, w in zip(draw((5, 8)), wanted, strict=True)]
        assert type(gated_activation(*inputs, gelu).grad_fn).__name__ == "GatedActivationFunctionBackward"
    gate, x = draw((5, 8), grad=True)
    # torch cannot look into the blocks.
    mapped = torch.func.vmap(lambda gate, x: gated_activation(gate, x, gelu))(gate, x)
    assert torch.equal(mapped, gated_activation(gate, x, gelu))
    gradient = torch.func.grad(lambda gate: gated_activation(gate, x.detach(), gelu).sum())(gate.detach())
    expected = torch.autograd.grad(gated_activation(gate, x, gelu, impl="reference").sum(), gate)[0]
    assert_close_by_max(gradient, expected, backward_tolerance(torch.float32, 2), "torch.func.grad")


# torch 2.13 itself, when forward mode is first used.
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_forward_mode_derivatives_are_refused():
    gate, x = draw((2, 4), torch.float64, grad=True)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(NotImplementedError, match="gated_activation: forward-mode"):
            gated_activation(gate, dual, gelu)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"gate": torch.ones(2, 4, dtype=torch.long)}, TypeError, "gate: expected a floating-point tensor"),
        ({"x": torch.ones(2, 4, dtype=torch.long)}, TypeError, "x: expected a floating-point tensor"),
        ({"x": torch.ones(4)}, ValueError, r"x: expected shape that of gate = \(2, 4\), got \(4,\)"),
        ({"impl": "fast"}, ValueError, r"impl: expected one of .* for gated_activation, got 'fast'"),
    ],
)
def test_errors_name_field_expected_and_actual(change, error, message):
    arguments = {"gate": torch.ones(2, 4), "x": torch.ones(2, 4), "impl": None} | change
    with pytest.raises(error, match=message):
        gated_activation(arguments["gate"], arguments["x"], gelu, impl=arguments["impl"])
