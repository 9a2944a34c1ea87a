"""RG-LRU: the chunked backend against the equations, splits against wholes, documents and pads against none."""

import itertools

import pytest
import torch

from recurrent_gemma.modeling.ops import rg_lru
from recurrent_gemma.modeling.ops.linear_scan.chunked import block_length
from tests.tolerances import assert_close_by_max, backward_tolerance, forward_tolerance

# 16 and 32 are chunk lengths, 32 is a block length at large widths; primes fit neither.
LENGTHS = (1, 2, 3, 4, 15, 16, 17, 31, 32, 33, 71, 257)


def draw(batch, length, width, dtype=torch.float32, *, grad=False):
    """x, input gate, recurrence gate, a_param, h0; a_param spreads a from nearly 0 to nearly 1."""
    shapes = [(batch, length, width)] * 3
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    tensors += [torch.linspace(-9, 3, width, dtype=torch.float64), torch.randn(batch, width, dtype=torch.float64)]
    return [t.to(dtype).requires_grad_(grad) for t in tensors]


def markers(batch, length, starts, valid):
    return (
        torch.rand(batch, length) < 0.15 if starts else None,
        torch.rand(batch, length) < 0.7 if valid else None,
    )


def values_and_gradients(inputs, weight, **options):
    for tensor in inputs:
        tensor.grad = None
    y, h_last = rg_lru(*inputs, **options)
    ((y * weight.to(y.dtype)).sum() + h_last.sin().sum()).backward()
    return [y, h_last, *(tensor.grad for tensor in inputs)]


@pytest.mark.parametrize(("starts", "valid"), list(itertools.product((False, True), repeat=2)))
@pytest.mark.parametrize("length", LENGTHS)
def test_chunked_equals_reference_with_every_gradient(length, starts, valid):
    for dtype, batch in ((torch.float32, 1), (torch.float64, 3), (torch.bfloat16, 2), (torch.float16, 2)):
        inputs = draw(batch, length, 10, dtype, grad=True)
        weight = torch.randn(batch, length, 10)
        starts_BL, valid_BL = markers(batch, length, starts, valid)
        options = {"starts": starts_BL, "valid": valid_BL}
        expected = values_and_gradients(inputs, weight, impl="reference", **options)
        actual = values_and_gradients(inputs, weight, impl="chunked", **options)
        names = ("y", "h_last", "x", "input_gate", "recurrence_gate", "a_param", "h0")
        for index, (name, a, e) in enumerate(zip(names, actual, expected, strict=True)):
            bar = forward_tolerance if index < 2 else backward_tolerance
            assert a.dtype == e.dtype
            assert_close_by_max(a, e, bar(dtype, length), f"{name} {dtype}")


def test_several_blocks_of_time_agree_with_the_reference():
    width = 3000
    length = 2 * block_length(2, width, torch.float32) + 7
    inputs = draw(2, length, width, grad=True)
    starts, valid = markers(2, length, True, True)
    weight = torch.randn(2, length, width)
    for options in ({}, {"starts": starts, "valid": valid}):
        expected = values_and_gradients(inputs, weight, impl="reference", **options)
        actual = values_and_gradients(inputs, weight, impl="chunked", **options)
        for a, e in zip(actual, expected, strict=True):
            assert_close_by_max(a, e, backward_tolerance(torch.float32, length), "several blocks")


def test_gradients_agree_with_finite_differences():
    x, input_gate, recurrence_gate, _, h0 = draw(2, 19, 3, torch.float64)
    a_param = torch.tensor([-2.0, 0.0, 1.5], dtype=torch.float64)  # away from the clip of the square root's derivative
    inputs = [t.requires_grad_() for t in (x, input_gate, recurrence_gate, a_param, h0)]
    starts, valid = markers(2, 19, True, True)
    assert torch.autograd.gradcheck(lambda *args: rg_lru(*args, starts=starts, valid=valid), inputs)
    assert torch.autograd.gradcheck(lambda *args: rg_lru(*args)[0], inputs)


def test_derivative_of_the_square_root_is_clipped_where_a_is_almost_1():
    # 1 - a^2 underflows the clip at 2.5e-7: without it the gradient would be tens of times as large.
    x, gate = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    slopes = []
    for a_param in (-20.0, -24.0):
        param = torch.tensor([a_param], requires_grad=True)
        rg_lru(x, gate, gate, param)[0].sum().backward()
        slopes.append(param.grad.item() / torch.sigmoid(param).item())
    # d y / d log a = -2 a^2 * 1000 * sigmoid(0), d log a / d param = -8 sigmoid(0) sigmoid(param)
    assert slopes == pytest.approx([4000.0, 4000.0], rel=1e-3)


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_any_split_equals_the_whole(impl):
    inputs = draw(2, 75, 6)
    starts, valid = markers(2, 75, True, True)
    y, h_last = rg_lru(*inputs, starts=starts, valid=valid, impl=impl)
    for cuts in ((0, 1, 75), (0, 16, 32, 75), (0, 37, 74, 75), tuple(range(76))):
        state, parts = inputs[4], []
        for begin, end in itertools.pairwise(cuts):
            span = slice(begin, end)
            part, state = rg_lru(
                *(t[:, span] for t in inputs[:3]),
                inputs[3],
                state,
                starts=starts[:, span],
                valid=valid[:, span],
                impl=impl,
            )
            parts.append(part)
        assert_close_by_max(torch.cat(parts, 1), y, forward_tolerance(torch.float32, 75), "split")
        assert_close_by_max(state, h_last, forward_tolerance(torch.float32, 75), "state")


def test_packed_documents_equal_separate_ones():
    lengths = (1, 5, 16, 33, 2)
    inputs = draw(1, sum(lengths), 6)
    starts = torch.zeros(1, sum(lengths), dtype=torch.bool)
    packed_starts = [sum(lengths[:i]) for i in range(len(lengths))]
    starts[0, packed_starts] = True
    packed, _ = rg_lru(*inputs, starts=starts)
    for begin, length in zip(packed_starts, lengths, strict=True):
        span = slice(begin, begin + length)
        alone, _ = rg_lru(*(t[:, span] for t in inputs[:3]), inputs[3], starts=starts[:, span])
        assert_close_by_max(packed[:, span], alone, forward_tolerance(torch.float32, length), f"document at {begin}")


def test_pads_anywhere_equal_their_absence():
    inputs = draw(1, 60, 6)
    _, valid = markers(1, 60, False, True)
    padded, h_last = rg_lru(*inputs, valid=valid)
    bare, bare_last = rg_lru(*(t[:, valid[0]] for t in inputs[:3]), *inputs[3:])
    assert_close_by_max(padded[:, valid[0]], bare, forward_tolerance(torch.float32, 60), "valid tokens")
    assert_close_by_max(h_last, bare_last, forward_tolerance(torch.float32, 60), "state")


def test_what_a_pad_holds_cannot_leak_even_as_nan():
    inputs = draw(1, 40, 4)
    poisoned = [t.index_fill(1, torch.arange(20), torch.nan) for t in inputs[:3]]
    valid = torch.arange(40)[None] >= 20
    y, h_last = rg_lru(*poisoned, *inputs[3:], valid=valid)
    expected, expected_last = rg_lru(*(t[:, 20:] for t in inputs[:3]), *inputs[3:])
    assert_close_by_max(y[:, 20:], expected, forward_tolerance(torch.float32, 20), "behind pads")
    assert_close_by_max(h_last, expected_last, forward_tolerance(torch.float32, 20), "state")


@pytest.mark.parametrize("a_param", [-80.0, -16.0, 0.0, 12.0, 1e4])
def test_decay_from_0_to_1_stays_exact(a_param):
    """a = 1 to the last bit, 1 - 1e-7, moderate, 1e-42 (subnormal) and 0, with documents in between."""
    inputs = draw(1, 100, 4)
    param = torch.full((4,), a_param)
    starts, _ = markers(1, 100, True, False)
    for options in ({}, {"starts": starts}):
        y, h_last = rg_lru(*inputs[:3], param, inputs[4], **options)
        expected, expected_last = rg_lru(
            *(t.double() for t in (*inputs[:3], param, inputs[4])), impl="reference", **options
        )
        assert torch.isfinite(y).all()
        # exp's own relative error reaches eps * |log a|, and the state of 100 steps sums it.
        assert_close_by_max(y, expected, forward_tolerance(torch.float32, 100 * 100), f"a_param {a_param}")
        assert_close_by_max(h_last, expected_last, forward_tolerance(torch.float32, 100 * 100), "state")


def test_states_are_fp32_and_are_the_output_before_rounding():
    inputs = draw(2, 33, 6, torch.bfloat16)
    y, h_last, states = rg_lru(*inputs, return_states=True)
    assert (y.dtype, h_last.dtype, states.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert torch.equal(states.to(torch.bfloat16), y)
    assert torch.equal(states[:, -1], h_last)
    resumed, _ = rg_lru(*(t[:, 20:] for t in inputs[:3]), inputs[3], states[:, 19])
    assert_close_by_max(resumed, y[:, 20:], forward_tolerance(torch.bfloat16, 33), "resumed from a snapshot")


def test_non_contiguous_inputs_and_no_input_mutated():
    x, input_gate, recurrence_gate, a_param, h0 = draw(2, 40, 8)
    strided = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (x, input_gate, recurrence_gate)]
    starts, valid = markers(2, 40, True, True)
    before = [t.clone() for t in (*strided, a_param, h0, starts, valid)]
    y, h_last = rg_lru(*strided, a_param, h0, starts=starts, valid=valid)
    expected, expected_last = rg_lru(x, input_gate, recurrence_gate, a_param, h0, starts=starts, valid=valid)
    assert_close_by_max(y, expected, forward_tolerance(torch.float32), "y")
    assert_close_by_max(h_last, expected_last, forward_tolerance(torch.float32), "h_last")
    assert all(torch.equal(a, b) for a, b in zip(before, (*strided, a_param, h0, starts, valid), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_options", [False, True])
def test_registered_op_passes_opcheck(dtype, with_options):
    inputs = draw(2, 21, 4, dtype, grad=True)
    starts, valid = markers(2, 21, with_options, with_options)
    h0 = inputs[4] if with_options else None
    arguments = (*inputs[:4], h0, starts, valid, None, None, dtype, "chunked")
    torch.library.opcheck(torch.ops.recurrent_gemma.rg_lru.default, arguments)


def test_compiled_with_fullgraph_equals_eager_with_gradients():
    inputs = draw(1, 40, 4, grad=True)
    weight = torch.randn(1, 40, 4)
    expected = values_and_gradients(inputs, weight)
    compiled = torch.compile(lambda *args: rg_lru(*args), fullgraph=True, backend="aot_eager")
    y, h_last = compiled(*inputs)
    for tensor in inputs:
        tensor.grad = None
    ((y * weight).sum() + h_last.sin().sum()).backward()
    for a, e in zip([y, h_last, *(t.grad for t in inputs)], expected, strict=True):
        assert torch.equal(a, e)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own, inside jvp
def test_forward_mode_and_second_derivatives_raise():
    inputs = draw(1, 5, 3, grad=True)
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(lambda x: rg_lru(x, *inputs[1:])[0], (inputs[0].detach(),), (torch.ones(1, 5, 3),))
    (first,) = torch.autograd.grad(rg_lru(*inputs)[0].sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        torch.autograd.grad(first.sum(), inputs[1])


def test_bad_arguments_name_what_is_wrong():
    x, input_gate, recurrence_gate, a_param, h0 = draw(2, 5, 3)
    good = {"x": x, "input_gate": input_gate, "recurrence_gate": recurrence_gate, "a_param": a_param, "h0": h0}
    marker = torch.zeros(2, 5, dtype=torch.bool)
    cases = (
        ("x", x[:, :0], ValueError),
        ("x", x[0], ValueError),
        ("x", x.long(), TypeError),
        ("input_gate", input_gate[:, :4], ValueError),
        ("recurrence_gate", recurrence_gate[..., :2], ValueError),
        ("a_param", a_param[:2], ValueError),
        ("h0", h0[:1], ValueError),
        ("starts", marker[:, :4], ValueError),
        ("valid", marker.long(), TypeError),
        ("impl", "cuda", ValueError),
    )
    for name, value, error in cases:
        with pytest.raises(error, match=name):
            rg_lru(**{**good, name: value})
