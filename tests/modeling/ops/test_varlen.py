"""Packed sequences: both ops against the equations and against rows, differentiable and with states in pages."""

import itertools

import pytest
import torch

from tests.modeling.ops.packed_ops import DEVICE, TAPS, WIDTH, Conv, RgLru, both, bounds, narrowed, tokens_of
from tests.support import require
from tests.tolerances import assert_close_by_max, backward_tolerance, forward_tolerance

# Decoding; the same length for all; empty, K - 1, K, around a tile of 8 steps, and a prime.
DECODE = (1, 1, 1, 1)
MIXED = (1, 0, 3, 9, 1, 4, 2, 8, 23, 7)
# Next to a prefill, sequences that decode.
SERVED = (1, 11, 1, 2, 1)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Short sequences span several tiles: the interpreter takes its time."""
    require("triton")
    from recurrent_gemma.modeling.ops.causal_conv1d import triton as conv
    from recurrent_gemma.modeling.ops.rg_lru import triton as scan

    for kernels in (conv, scan):
        monkeypatch.setattr(kernels, "_CHANNELS", 8)
        monkeypatch.setattr(kernels, "_STEPS", 8)


def evaluate(op, inputs, weight, impl, memory, cu_seqlens, has_initial):
    """Values and every gradient."""
    drawn = [t.detach().requires_grad_() for t in (inputs if memory else inputs[:-1])]
    y, last = op.packed(*drawn, cu_seqlens=cu_seqlens, has_initial=has_initial, impl=impl)
    loss = (y * weight.to(y.dtype)).sum() + last.sin().sum() + sum(t.sum() for t in drawn)
    return [y, last, *torch.autograd.grad(loss, drawn)]


@both
@pytest.mark.parametrize(
    ("lengths", "dtype", "memory", "flags"),
    [
        (DECODE, torch.float32, True, True),
        (DECODE, torch.float32, False, False),
        (MIXED, torch.float32, True, True),
        (MIXED, torch.float32, False, False),
        (SERVED, torch.bfloat16, True, True),
        (SERVED, torch.float16, True, False),
        ((1,), torch.float32, True, False),
    ],
)
def test_backends_equal_reference_with_every_gradient(op, lengths, dtype, memory, flags):
    cu_seqlens, tokens = bounds(lengths), sum(lengths)
    has_initial = torch.arange(len(lengths), device=DEVICE) % 3 != 1 if flags else None
    inputs = op.draw(tokens, len(lengths), dtype)
    weight = torch.randn(tokens, WIDTH, device=DEVICE)
    exact = evaluate(op, [t.double() for t in inputs], weight.to(dtype), "reference", memory, cu_seqlens, has_initial)
    for impl in ("triton", op.torch_backend, "reference"):
        actual = evaluate(op, inputs, weight.to(dtype), impl, memory, cu_seqlens, has_initial)
        for index, (a, e) in enumerate(zip(actual, exact, strict=True)):
            bar = (forward_tolerance if index < 2 else backward_tolerance)(dtype, tokens * TAPS)
            if impl == "reference" and index >= 2 and dtype != torch.float32:
                continue  # autograd adds up the parameters' gradients in half precision there
            assert_close_by_max(a, e, bar, f"result {index} of {impl}")
    results = evaluate(op, inputs, weight.to(dtype), op.torch_backend, memory, cu_seqlens, has_initial)
    assert [t.dtype for t in results[2:]] == [t.dtype for t in (inputs if memory else inputs[:-1])]
    assert results[0].dtype == dtype
    assert results[1].dtype == (torch.promote_types(dtype, torch.float32) if op is RgLru else dtype)


@both
@pytest.mark.parametrize("impl", ["triton", "torch", "reference"])
def test_packed_equals_separate(op, impl):
    lengths = SERVED
    inputs = op.draw(sum(lengths), len(lengths), torch.float32)
    has_initial = torch.tensor([True, False, True, True, False], device=DEVICE)
    impl = op.torch_backend if impl == "torch" else impl
    y, last = op.packed(*inputs, cu_seqlens=bounds(lengths), has_initial=has_initial, impl=impl)
    for row, (begin, end) in enumerate(itertools.pairwise(bounds(lengths).tolist())):
        alone = tokens_of(op, inputs, slice(begin, end))
        expected, expected_last = op.alone(*alone, inputs[-1][row], bool(has_initial[row]))
        bar = forward_tolerance(torch.float32, 4 * (end - begin))
        assert_close_by_max(y[begin:end], expected, bar, f"sequence {row}")
        assert_close_by_max(last[row], expected_last, bar, f"memory {row}")


@both
def test_gradients_agree_with_finite_differences(op):
    inputs = op.draw(8, 4, torch.float64)
    if op is RgLru:  # away from the clip of the square root's derivative
        inputs[3] = torch.linspace(-2, 1.5, WIDTH, dtype=torch.float64, device=DEVICE)
    inputs = [t.requires_grad_() for t in narrowed(inputs)]
    options = {"cu_seqlens": bounds((1, 0, 5, 2)), "impl": op.torch_backend}
    has_initial = torch.tensor([True, True, False, True], device=DEVICE)
    assert torch.autograd.gradcheck(lambda *args: op.packed(*args, has_initial=has_initial, **options), inputs)
    assert torch.autograd.gradcheck(lambda *args: op.packed(*args, **options), inputs[:-1])


def pages_of(op, dtype, *, transposed=False):
    """12 pages, all NaN, in storage with something between and around them."""
    dtype = torch.promote_types(dtype, torch.float32) if op is RgLru else dtype
    shape = op.memory[::-1] if transposed else op.memory
    storage = torch.full((12, 2, *(2 * n for n in shape)), torch.nan, dtype=dtype, device=DEVICE)
    return storage[:, 1][(slice(None), *(slice(1, None, 2) for _ in shape))], storage


@both
@pytest.mark.parametrize("impl", ["triton", "torch", "reference"])
@pytest.mark.parametrize(("lengths", "layout"), [(DECODE, "channels_taps"), (SERVED, "taps_channels")])
def test_pages_change_in_place_where_they_are_named_and_nowhere_else(op, impl, lengths, layout):
    impl = op.torch_backend if impl == "torch" else impl
    options = {} if op is RgLru else {"layout": layout}
    transposed = op is Conv and layout == "channels_taps"
    # Between the sequences one of padding and an empty one; after them tokens of none. Padding holds anything.
    count = len(lengths)
    all_lengths = (*lengths[:2], 1, 0, *lengths[2:])
    slots = torch.tensor([7, 3, 0, 5, *(8, 2, 10)[: count - 2]], dtype=torch.int32, device=DEVICE)
    has_initial = torch.tensor([True, False, True, False, *(True, False, True)[: count - 2]], device=DEVICE)
    tokens = sum(all_lengths)
    inputs = op.draw(tokens + 2, len(all_lengths), torch.float32)
    padding = torch.zeros(tokens + 2, dtype=torch.bool, device=DEVICE)
    padding[[sum(lengths[:2]), tokens, tokens + 1]] = True
    inputs[0][padding] = torch.nan
    state, storage = pages_of(op, torch.float32, transposed=transposed)
    view = state.transpose(1, 2) if transposed else state
    for row in range(len(all_lengths)):
        if slots[row] > 0 and has_initial[row]:
            view[slots[row]] = inputs[-1][row]
    state[0] = 5.0  # padding would leave NaN there
    before = storage.clone()
    y = op.serve(
        *inputs[:-1], state, cu_seqlens=bounds(all_lengths), slots=slots, has_initial=has_initial, impl=impl, **options
    )
    touched = torch.zeros_like(storage, dtype=torch.bool)
    places = torch.zeros_like(storage, dtype=torch.bool)[:, 1]
    assert not y[padding].any()
    for row, (begin, end) in enumerate(itertools.pairwise(bounds(all_lengths).tolist())):
        if slots[row] == 0 or begin == end:
            continue
        alone = tokens_of(op, inputs, slice(begin, end))
        expected, last = op.alone(*alone, inputs[-1][row].nan_to_num(), bool(has_initial[row]))
        bar = forward_tolerance(torch.float32, 4 * (end - begin))
        assert_close_by_max(y[begin:end], expected, bar, f"sequence {row}")
        assert_close_by_max(view[slots[row]], last, bar, f"page {slots[row]}")
        inside = (slots[row], *(slice(1, None, 2) for _ in op.memory))
        places[inside] = True
    touched[:, 1] = places
    assert torch.equal(storage[~touched].nan_to_num(77.0), before[~touched].nan_to_num(77.0))


# NumPy, in which Triton's interpreter computes, warns of inf - inf.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@both
@pytest.mark.parametrize("impl", ["triton", "torch", "reference"])
@pytest.mark.parametrize("what", ["token", "page"])
def test_what_is_not_finite_stays_in_its_sequence(op, impl, what):
    impl = op.torch_backend if impl == "torch" else impl
    lengths, broken = (3, 5, 0, 4, 2), 1
    slots = torch.tensor([3, 6, 2, 4, 1], device=DEVICE)
    options = {"cu_seqlens": bounds(lengths), "slots": slots, "impl": impl}
    options["has_initial"] = torch.tensor([True, True, True, False, True], device=DEVICE)
    inputs = op.draw(sum(lengths), len(lengths), torch.float32)
    results = []
    for value in (0.5, torch.nan, torch.inf):
        x, state = inputs[0].clone(), torch.zeros(7, *op.memory, device=DEVICE)
        state[slots] = inputs[-1]
        if what == "token":
            x[4] = value
        else:
            state[slots[broken]] = value
        results.append((op.serve(x, *inputs[1:-1], state, **options), state))
    others = [row for row in range(len(lengths)) if row != broken]
    spans = [slice(begin, end) for begin, end in itertools.pairwise(bounds(lengths).tolist())]
    for y, state in results[1:]:
        assert not y[spans[broken]].isfinite().all()
        for row in others:
            bar = forward_tolerance(torch.float32, 4 * max(1, lengths[row]))
            assert_close_by_max(state[slots[row]], results[0][1][slots[row]], bar, f"page of sequence {row}")
            if lengths[row]:
                assert_close_by_max(y[spans[row]], results[0][0][spans[row]], bar, f"sequence {row}")


@both
@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_token_by_token_in_place_equals_the_whole(op, impl):
    impl = op.torch_backend if impl == "torch" else impl
    inputs = op.draw(7, 1, torch.float32)
    y, last = op.packed(*inputs[:-1], cu_seqlens=bounds((7,)), impl=impl)
    state, _ = pages_of(op, torch.float32)
    slots = torch.tensor([4], device=DEVICE)
    parts = []
    for begin, end in itertools.pairwise((0, 1, 2, 5, 6, 7)):
        options = {"cu_seqlens": bounds((end - begin,)), "slots": slots}
        has_initial = torch.tensor([begin > 0], device=DEVICE)
        part = op.serve(*tokens_of(op, inputs, slice(begin, end)), state, has_initial=has_initial, impl=impl, **options)
        parts.append(part)
    assert_close_by_max(torch.cat(parts), y, forward_tolerance(torch.float32, 28), "split")
    assert_close_by_max(state[4], last[0], forward_tolerance(torch.float32, 28), "page")


@both
def test_strided_inputs_and_no_argument_but_the_state_mutated(op):
    inputs = op.draw(6, 2, torch.float32)
    strided = [t.t().contiguous().t() if t.ndim == 2 else t for t in inputs]
    cu_seqlens, has_initial = bounds((4, 2)), torch.tensor([True, False], device=DEVICE)
    slots = torch.tensor([2, 1], device=DEVICE)
    for impl in ("triton", op.torch_backend):
        state = torch.zeros(3, *op.memory, device=DEVICE)
        before = [t.clone() for t in (*strided, cu_seqlens, has_initial, slots)]
        options = {"cu_seqlens": cu_seqlens, "has_initial": has_initial, "impl": impl}
        y, _ = op.packed(*strided, **options)
        expected, _ = op.packed(*inputs, **options)
        assert torch.equal(y, expected)
        op.serve(*strided[:-1], state, slots=slots, **options)
        after = (*strided, cu_seqlens, has_initial, slots)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@both
def test_registered_ops_pass_opcheck(op):
    ops, inputs = torch.ops.recurrent_gemma, narrowed(op.draw(3, 2, torch.float32))
    inputs = [t.requires_grad_() for t in inputs]
    cu_seqlens, has_initial = bounds((1, 2)), torch.tensor([True, False], device=DEVICE)
    if op is RgLru:
        arguments = (*inputs, None, None, cu_seqlens, has_initial, torch.float32, "triton")
        torch.library.opcheck(ops.rg_lru.default, arguments)
    else:
        torch.library.opcheck(ops.causal_conv1d.default, (*inputs, None, cu_seqlens, has_initial, "triton"))
    slots = torch.tensor([2, 1], device=DEVICE)
    state = torch.zeros(3, *inputs[-1].shape[1:], device=DEVICE)
    arguments = (*(t.detach() for t in inputs[:-1]), state, cu_seqlens, slots, has_initial)
    for backend in ("triton", op.torch_backend):
        if op is RgLru:
            torch.library.opcheck(ops.rg_lru_varlen_.default, (*arguments, backend))
        else:
            torch.library.opcheck(ops.causal_conv1d_varlen_.default, (*arguments, False, backend))


@both
def test_compiled_in_place_equals_eager(op):
    inputs = op.draw(5, 2, torch.float32)
    options = {"cu_seqlens": bounds((1, 4)), "slots": torch.tensor([2, 1], device=DEVICE), "impl": op.torch_backend}
    options["has_initial"] = torch.tensor([True, False], device=DEVICE)
    states = [torch.ones(3, *op.memory, device=DEVICE) for _ in range(2)]
    expected = op.serve(*inputs[:-1], states[0], **options)
    compiled = torch.compile(lambda *args: op.serve(*args, **options), fullgraph=True, backend="aot_eager")
    assert_close_by_max(compiled(*inputs[:-1], states[1]), expected, forward_tolerance(torch.float32, 20), "y")
    assert_close_by_max(states[1], states[0], forward_tolerance(torch.float32, 20), "state")
