"""Causal convolution: shifted multiply-adds against the definition, splits against wholes, documents and pads."""

import itertools

import pytest
import torch

from recurrent_gemma.modeling.ops import causal_conv1d
from tests.tolerances import assert_close_by_max, backward_tolerance, forward_tolerance


def draw(batch, length, width, taps, dtype=torch.float32, *, grad=False):
    """x, weight, bias, history."""
    shapes = ((batch, length, width), (width, taps), (width,), (batch, taps - 1, width))
    return [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_(grad) for shape in shapes]


def markers(batch, length, starts, valid):
    return (
        torch.rand(batch, length) < 0.3 if starts else None,
        torch.rand(batch, length) < 0.7 if valid else None,
    )


@pytest.mark.parametrize(("starts", "valid"), list(itertools.product((False, True), repeat=2)))
@pytest.mark.parametrize("taps", [1, 2, 4, 6])
def test_shifted_equals_reference_with_every_gradient(taps, starts, valid):
    for length, dtype, with_history in itertools.product(
        (1, 2, 3, 4, 5, 29), (torch.float32, torch.float64, torch.bfloat16, torch.float16), (False, True)
    ):
        inputs = draw(2, length, 5, taps, dtype, grad=True)
        arguments = inputs if with_history else inputs[:3]
        weight = torch.randn(2, length, 5)
        starts_BL, valid_BL = markers(2, length, starts, valid)
        results = {}
        for impl in ("reference", "shifted"):
            y, history = causal_conv1d(*arguments, starts=starts_BL, valid=valid_BL, impl=impl)
            gradients = torch.autograd.grad(
                (y * weight.to(dtype)).sum() + history.square().sum() + sum(t.sum() for t in arguments),
                arguments,
            )
            results[impl] = [y, history, *gradients]
        for index, (actual, expected) in enumerate(zip(results["shifted"], results["reference"], strict=True)):
            assert actual.dtype == expected.dtype and actual.shape == expected.shape
            if actual.numel():
                bar = (forward_tolerance if index < 2 else backward_tolerance)(dtype, taps * length)
                assert_close_by_max(actual, expected, bar, f"result {index}, {dtype}, L = {length}")


def test_gradients_agree_with_finite_differences():
    inputs = draw(2, 9, 3, 4, torch.float64, grad=True)
    starts, valid = markers(2, 9, True, True)
    assert torch.autograd.gradcheck(lambda *args: causal_conv1d(*args, starts=starts, valid=valid), inputs)


def test_equals_torch_conv1d_where_that_can_express_it():
    x, weight, bias, _ = draw(2, 20, 5, 4)
    expected = torch.nn.functional.conv1d(x.transpose(1, 2), weight[:, None], bias, padding=3, groups=5)[..., :20]
    assert_close_by_max(
        causal_conv1d(x, weight, bias)[0], expected.transpose(1, 2), forward_tolerance(torch.float32, 4), "y"
    )


@pytest.mark.parametrize("impl", ["reference", "shifted"])
def test_any_split_equals_the_whole(impl):
    x, weight, bias, history = draw(3, 30, 4, 4)
    starts, valid = markers(3, 30, True, True)
    y, last = causal_conv1d(x, weight, bias, history, starts=starts, valid=valid, impl=impl)
    for cuts in ((0, 1, 30), (0, 2, 4, 30), tuple(range(31))):
        state, parts = history, []
        for begin, end in itertools.pairwise(cuts):
            span = slice(begin, end)
            part, state = causal_conv1d(
                x[:, span], weight, bias, state, starts=starts[:, span], valid=valid[:, span], impl=impl
            )
            parts.append(part)
        assert_close_by_max(torch.cat(parts, 1), y, forward_tolerance(torch.float32, 4), "split")
        assert torch.equal(state, last)


def test_packed_documents_equal_separate_ones_and_pads_their_absence():
    x, weight, bias, _ = draw(1, 24, 4, 4)
    starts, valid = torch.zeros(1, 24, dtype=torch.bool), torch.rand(1, 24) < 0.6
    starts[0, [0, 1, 3, 10]] = True
    packed, _ = causal_conv1d(x, weight, bias, starts=starts)
    for begin, end in itertools.pairwise((0, 1, 3, 10, 24)):
        alone, _ = causal_conv1d(x[:, begin:end], weight, bias)
        assert_close_by_max(packed[:, begin:end], alone, forward_tolerance(torch.float32, 4), f"document at {begin}")
    padded, history = causal_conv1d(x.masked_fill(~valid[..., None], torch.nan), weight, bias, valid=valid)
    bare, bare_history = causal_conv1d(x[:, valid[0]], weight, bias)
    assert_close_by_max(padded[:, valid[0]], bare, forward_tolerance(torch.float32, 4), "valid tokens")
    assert torch.equal(history, bare_history)
    assert not padded[:, ~valid[0]].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_registered_op_passes_opcheck(dtype):
    inputs = draw(2, 6, 4, 4, dtype, grad=True)
    starts, _ = markers(2, 6, True, False)
    for marker in (None, starts):
        history = None if marker is None else inputs[3]
        arguments = (*inputs[:3], history, marker, None, None, "shifted")
        torch.library.opcheck(torch.ops.recurrent_gemma.causal_conv1d.default, arguments)


def test_no_input_mutated_and_the_history_owns_its_memory():
    inputs = draw(2, 7, 4, 4)
    starts, valid = markers(2, 7, True, True)
    before = [t.clone() for t in (*inputs, starts, valid)]
    for options in ({}, {"starts": starts}, {"starts": starts, "valid": valid}):
        _, history = causal_conv1d(*inputs, **options)
        history.fill_(7.0)
    assert all(torch.equal(a, b) for a, b in zip(before, (*inputs, starts, valid), strict=True))


def test_bad_arguments_name_what_is_wrong():
    x, weight, bias, history = draw(2, 5, 3, 4)
    good = {"x": x, "weight": weight, "bias": bias, "history": history}
    cases = (
        ("x", x[:, :0], ValueError),
        ("x", x.long(), TypeError),
        ("weight", weight.long(), TypeError),
        ("weight", weight[:2], ValueError),
        ("weight", weight[:, :0], ValueError),
        ("bias", bias[:2], ValueError),
        ("history", history[:, :2], ValueError),
        ("starts", torch.zeros(2, 4, dtype=torch.bool), ValueError),
        ("valid", torch.zeros(2, 5), TypeError),
        ("impl", "chunked", ValueError),
    )
    for name, value, error in cases:
        with pytest.raises(error, match=name):
            causal_conv1d(**{**good, name: value})
