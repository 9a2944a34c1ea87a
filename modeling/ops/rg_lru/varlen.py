"""RG-LRU of packed sequences: differentiable, and with states in pages that are changed in place."""

import itertools

import torch
from torch import Tensor

from recurrent_gemma.modeling.ops.dispatch import (
    choose_kernel_backend,
    expect_floating,
    expect_sequence,
    expect_shape,
    needs_registered_op,
    refuse_forward_mode,
)
from recurrent_gemma.modeling.ops.packed import (
    expect_cu_seqlens,
    expect_device,
    expect_has_initial,
    expect_no_gradient,
    expect_slots,
    live_tokens,
    one_token_each,
    places_after_memory,
    row_with_memory,
    sequence_of_tokens,
    write_pages_,
)
from recurrent_gemma.modeling.ops.rg_lru.op import expect_gates, run_rg_lru
from recurrent_gemma.modeling.ops.rg_lru.reference import rg_lru_reference


def rg_lru_varlen(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    h0: Tensor | None = None,
    *,
    cu_seqlens: Tensor,
    has_initial: Tensor | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """``rg_lru`` of N sequences of any lengths side by side, each as if it stood alone.

    A sequence without a state to go on from starts a document: at its first token a is 0 and the square root is 1.

    Args:
        x: (T, R), any floating dtype; T, R >= 1.
        input_gate: (T, R), before the sigmoid.
        recurrence_gate: (T, R), before the sigmoid.
        a_param: (R,).
        h0: (N, R), the states that the sequences go on from. When None, each of them starts a document.
        cu_seqlens: (N + 1) int32: sequence n is ``x[cu_seqlens[n] : cu_seqlens[n + 1]]``; it may be empty.
        has_initial: (N) bool, false where a sequence starts a document and its row of h0 is not read; all true when
            None.
        impl: ``"triton"`` (default on CUDA devices, where Triton is installed), ``"chunked"`` (default elsewhere, and
            for fp64) or ``"reference"``, which reads ``cu_seqlens`` on the host; forces a backend.

    Returns:
        y (T, R) in x's dtype and h_last (N, R) in fp32 (fp64 for fp64 inputs); an empty sequence's is its h0, or 0.

    Raises:
        TypeError: A tensor has the wrong kind of dtype.
        ValueError: A shape, a device or ``cu_seqlens`` disagrees with x, or ``impl`` does not exist or cannot run here.
        NotImplementedError: Forward-mode or second derivatives are asked for.
    """
    backend = _expect_arguments("rg_lru_varlen", impl, x, input_gate, recurrence_gate, a_param)
    expect_cu_seqlens(cu_seqlens, x, covers_all=True)
    sequences = cu_seqlens.shape[0] - 1
    if h0 is not None:
        expect_floating("h0", h0)
        expect_shape("h0", h0, (sequences, x.shape[1]), "(N, R)")
    if has_initial is not None:
        if h0 is None:
            raise ValueError("has_initial: expected None without h0, got a tensor; pass h0, or leave it out.")
        expect_has_initial(has_initial, sequences, x)
    if backend != "reference":
        refuse_forward_mode("rg_lru_varlen", x, input_gate, recurrence_gate, a_param, h0)
    return _run(backend, x, input_gate, recurrence_gate, a_param, h0, cu_seqlens, has_initial)


def rg_lru_varlen_(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    state: Tensor,
    *,
    cu_seqlens: Tensor,
    slots: Tensor,
    has_initial: Tensor,
    impl: str | None = None,
) -> Tensor:
    """``rg_lru_varlen`` for serving: states lie in pages of ``state``, which are changed in place.

    Page 0 is the null page: sequences there are padding, whose outputs are 0; it is neither used nor changed. The same
    holds for tokens after the last sequence. The host never waits for a CUDA device.

    Args:
        x: (T, R), any floating dtype; T, R >= 1.
        input_gate: (T, R), before its sigmoid.
        recurrence_gate: (T, R), before its sigmoid.
        a_param: (R,).
        state: (pages, R) in fp32 (fp64 for fp64 inputs), any strides. Changed at the pages of sequences that have
            tokens, nowhere else.
        cu_seqlens: (N + 1) int32; sequences may be empty, and the last value may be less than T.
        slots: (N) int32 or int64, each sequence's page. On CPU checked to lie in ``state``, and not to repeat.
        has_initial: (N) bool, false where a new sequence begins, which starts a document; its page is not read.
        impl: As in ``rg_lru_varlen``.

    Returns:
        y (T, R) in x's dtype.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: A shape, a device or a value is wrong, a tensor requires a gradient, or ``impl`` does not exist or
            cannot run here.
    """
    backend = _expect_arguments("rg_lru_varlen_", impl, x, input_gate, recurrence_gate, a_param)
    expect_no_gradient("rg_lru_varlen_", "rg_lru_varlen", x, input_gate, recurrence_gate, a_param, state)
    expect_cu_seqlens(cu_seqlens, x, covers_all=False)
    dtype = torch.promote_types(x.dtype, torch.float32)
    if state.dtype != dtype:
        raise TypeError(f"state: expected {dtype} for x in {x.dtype}, got {state.dtype}; keep the pages in {dtype}.")
    if state.ndim != 2 or state.shape[1] != x.shape[1]:
        raise ValueError(f"state: expected shape (pages, R) with R = {x.shape[1]}, got {tuple(state.shape)}.")
    expect_device("state", state, x)
    expect_slots(slots, cu_seqlens.shape[0] - 1, state.shape[0], x)
    expect_has_initial(has_initial, cu_seqlens.shape[0] - 1, x)
    run = _rg_lru_varlen_ if needs_registered_op() else _update_
    return run(x, input_gate, recurrence_gate, a_param, state, cu_seqlens, slots, has_initial, backend)


def _expect_arguments(
    op: str, impl: str | None, x: Tensor, input_gate: Tensor, recurrence_gate: Tensor, a_param: Tensor
) -> str:
    """The backend."""
    expect_sequence("x", x, "(T, R)")
    expect_gates(x, input_gate, recurrence_gate, a_param, "(T, R)")
    return choose_kernel_backend(op, impl, x, "chunked")


def _run(
    backend: str,
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    h0: Tensor | None,
    cu_seqlens: Tensor,
    has_initial: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if backend == "triton":
        markers = (None, None, cu_seqlens, has_initial)
        return run_rg_lru(backend, x, input_gate, recurrence_gate, a_param, h0, *markers, out_dtype=x.dtype)
    if has_initial is not None and h0 is not None:
        h0 = torch.where(has_initial[:, None], h0, 0.0)
    opens = torch.full_like(cu_seqlens[1:], h0 is None, dtype=torch.bool) if has_initial is None else ~has_initial
    run = _reference if backend == "reference" else _as_one_row
    y, h_last = run(x, input_gate, recurrence_gate, a_param, h0, cu_seqlens, opens)
    return y.to(x.dtype), h_last


def _as_one_row(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    h0: Tensor | None,
    cu_seqlens: Tensor,
    opens: Tensor,
) -> tuple[Tensor, Tensor]:
    """The chunked backend on a row of documents. A state to go on from is a document of one token, opened fully."""
    tokens = x.shape[0]
    dtype = torch.promote_types(x.dtype, torch.float32)
    if one_token_each(cu_seqlens, tokens):
        x, input_gate, recurrence_gate = x[:, None], input_gate[:, None], recurrence_gate[:, None]
        arguments = (x, input_gate, recurrence_gate, a_param, h0, opens[:, None])
        y, h_last = run_rg_lru("chunked", *arguments, out_dtype=x.dtype)
        return y[:, 0], h_last
    sequence = sequence_of_tokens(cu_seqlens, tokens)
    starts = (torch.arange(tokens, device=x.device) == cu_seqlens[sequence]) & opens[sequence]
    begin, end = cu_seqlens[:-1], cu_seqlens[1:]
    if h0 is None:
        arguments = (x[None], input_gate[None], recurrence_gate[None], a_param, None, starts[None])
        states, _ = run_rg_lru("chunked", *arguments, out_dtype=dtype)
        h_last = states[0].index_select(0, (end - 1).clamp(min=0))
        return states[0], torch.where((end > begin)[:, None], h_last, 0.0)
    places = places_after_memory(sequence, 1)

    def with_memory(tokens: Tensor, memory: Tensor) -> Tensor:
        return row_with_memory(tokens.to(dtype), memory[:, None], cu_seqlens, places)[None]

    row = with_memory(x, h0)
    gates = with_memory(input_gate, torch.full_like(h0, torch.inf)), with_memory(recurrence_gate, torch.zeros_like(h0))
    starts = torch.ones_like(row[..., 0], dtype=torch.bool).index_copy(1, places, starts[None])
    states, _ = run_rg_lru("chunked", row, *gates, a_param, None, starts, out_dtype=dtype)
    h_last = states[0].index_select(0, end + torch.arange(end.shape[0], device=x.device))
    return states[0].index_select(0, places), h_last


def _one_by_one(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    h0: Tensor,
    cu_seqlens: Tensor,
    has_initial: Tensor,
) -> tuple[Tensor, Tensor]:
    """The chunked backend on one sequence after the other: in one row, NaN times a = 0 reaches the documents behind."""
    outputs, lasts = [], []
    for row, (begin, end) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
        here = slice(row, row + 1)
        last = h0[here]
        if end > begin:
            tokens = (x[begin:end], input_gate[begin:end], recurrence_gate[begin:end], a_param)
            bounds = cu_seqlens.new_tensor([0, end - begin])
            output, last = _run("chunked", *tokens, last, bounds, has_initial[here])
            outputs.append(output)
        lasts.append(last)
    outputs.append(x.new_zeros(x.shape[0] - sum(map(len, outputs)), x.shape[1]))
    return torch.cat(outputs), torch.cat(lasts)


def _is_finite(h_last: Tensor) -> bool:
    """Whether no state is NaN or infinite, as what is not stays so to the end; on CPU, where looking costs no wait."""
    return h_last.device.type != "cpu" or torch.compiler.is_compiling() or bool(h_last.isfinite().all())


def _reference(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    h0: Tensor | None,
    cu_seqlens: Tensor,
    opens: Tensor,
) -> tuple[Tensor, Tensor]:
    bounds = cu_seqlens.tolist()
    if h0 is None:
        h0 = x.new_zeros(len(bounds) - 1, x.shape[1])
    h0 = h0.to(torch.promote_types(x.dtype, torch.float32))
    outputs, lasts = [], []
    for row, (begin, end) in enumerate(itertools.pairwise(bounds)):
        last = h0[row : row + 1]
        if end > begin:
            starts = torch.zeros(1, end - begin, dtype=torch.bool, device=x.device)
            starts[:, 0] = opens[row]
            span = (None, slice(begin, end))
            tokens = (x[span], input_gate[span], recurrence_gate[span])
            states, last = rg_lru_reference(*tokens, a_param, last, starts, None)
            outputs.append(states[0])
        lasts.append(last)
    outputs.append(h0.new_zeros(x.shape[0] - bounds[-1], x.shape[1]))
    return torch.cat(outputs), torch.cat(lasts)


def _update_(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    state: Tensor,
    cu_seqlens: Tensor,
    slots: Tensor,
    has_initial: Tensor,
    backend: str,
) -> Tensor:
    if backend == "triton":
        from recurrent_gemma.modeling.ops.rg_lru.triton import rg_lru_triton_update_

        return rg_lru_triton_update_(x, input_gate, recurrence_gate, a_param, state, cu_seqlens, slots, has_initial)
    live = live_tokens(cu_seqlens, slots, x.shape[0])
    # Padding may hold anything, NaN included, and one row carries a state past it.
    x, input_gate, recurrence_gate = (torch.where(live, t, 0.0) for t in (x, input_gate, recurrence_gate))
    old = state.index_select(0, slots)
    arguments = (x, input_gate, recurrence_gate, a_param, old, cu_seqlens, has_initial & (slots > 0))
    y, h_last = _run(backend, *arguments)
    if backend == "chunked" and not _is_finite(h_last):
        y, h_last = _one_by_one(*arguments)
    write_pages_(state, h_last, old, cu_seqlens, slots)
    return torch.where(live, y, 0.0)


_rg_lru_varlen_ = torch.library.custom_op("recurrent_gemma::rg_lru_varlen_", _update_, mutates_args=("state",))


@_rg_lru_varlen_.register_fake
def _(x, input_gate, recurrence_gate, a_param, state, cu_seqlens, slots, has_initial, backend):
    return x.new_empty(x.shape)
