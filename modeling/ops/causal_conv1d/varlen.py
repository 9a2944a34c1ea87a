"""Causal convolution of packed sequences: differentiable, and with histories in pages that are changed in place."""

import itertools

import torch
from torch import Tensor

from recurrent_gemma.modeling.ops.causal_conv1d.op import expect_taps, run_causal_conv1d
from recurrent_gemma.modeling.ops.causal_conv1d.reference import causal_conv1d_reference
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
    last_tokens,
    live_tokens,
    places_after_memory,
    row_with_memory,
    sequence_of_tokens,
    write_pages_,
)

_LAYOUTS = ("taps_channels", "channels_taps")


def causal_conv1d_varlen(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    history: Tensor | None = None,
    *,
    cu_seqlens: Tensor,
    has_initial: Tensor | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """``causal_conv1d`` of N sequences of any lengths side by side, each as if it stood alone.

    Args:
        x: (T, R), any floating dtype; T, R >= 1.
        weight: (R, K), K >= 1; ``weight[:, -1]`` multiplies the current token.
        bias: (R,).
        history: (N, K - 1, R), each sequence's last inputs before x, the newest last; zeros when None.
        cu_seqlens: (N + 1) int32: sequence n is ``x[cu_seqlens[n] : cu_seqlens[n + 1]]``; it may be empty.
        has_initial: (N) bool, false where the history counts as zeros and is not read; all true when None.
        impl: ``"triton"`` (default on CUDA devices, where Triton is installed), ``"shifted"`` (default elsewhere, and
            for fp64) or ``"reference"``, which reads ``cu_seqlens`` on the host; forces a backend.

    Returns:
        y (T, R) and the new history (N, K - 1, R), both in x's dtype.

    Raises:
        TypeError: A tensor has the wrong kind of dtype.
        ValueError: A shape, a device or ``cu_seqlens`` disagrees with x, or ``impl`` does not exist or cannot run here.
        NotImplementedError: Forward-mode or second derivatives are asked for.
    """
    backend, taps = _expect_arguments("causal_conv1d_varlen", impl, x, weight, bias)
    expect_cu_seqlens(cu_seqlens, x, covers_all=True)
    sequences, width = cu_seqlens.shape[0] - 1, x.shape[1]
    if history is not None:
        expect_floating("history", history)
        expect_shape("history", history, (sequences, taps - 1, width), "(N, K - 1, R)")
    if has_initial is not None:
        if history is None:
            raise ValueError("has_initial: expected None without history, got a tensor; pass history, or leave it out.")
        expect_has_initial(has_initial, sequences, x)
    if backend != "reference":
        refuse_forward_mode("causal_conv1d_varlen", x, weight, bias, history)
    return _run(backend, x, weight, bias, history, cu_seqlens, has_initial)


def causal_conv1d_varlen_(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    *,
    cu_seqlens: Tensor,
    slots: Tensor,
    has_initial: Tensor,
    layout: str = "taps_channels",
    impl: str | None = None,
) -> Tensor:
    """``causal_conv1d_varlen`` for serving: histories lie in pages of ``state``, which are changed in place.

    Page 0 is the null page: sequences there are padding, whose outputs are 0; it is neither used nor changed. The same
    holds for tokens after the last sequence. The host never waits for a CUDA device.

    Args:
        x: (T, R), any floating dtype; T, R >= 1.
        weight: (R, K), K >= 1.
        bias: (R,).
        state: (pages, K - 1, R) in x's dtype, or (pages, R, K - 1) with ``layout="channels_taps"``; any strides.
            Changed at the pages of sequences that have tokens, nowhere else.
        cu_seqlens: (N + 1) int32; sequences may be empty, and the last value may be less than T.
        slots: (N) int32 or int64, each sequence's page. On CPU checked to lie in ``state``, and not to repeat.
        has_initial: (N) bool, false where a new sequence begins; its page is not read.
        layout: ``"taps_channels"`` or ``"channels_taps"``.
        impl: As in ``causal_conv1d_varlen``.

    Returns:
        y (T, R) in x's dtype.

    Raises:
        TypeError: A tensor has the wrong dtype.
        ValueError: A shape, a device or a value is wrong, a tensor requires a gradient, or ``impl`` or ``layout`` does
            not exist or cannot run here.
    """
    backend, taps = _expect_arguments("causal_conv1d_varlen_", impl, x, weight, bias)
    expect_no_gradient("causal_conv1d_varlen_", "causal_conv1d_varlen", x, weight, bias, state)
    expect_cu_seqlens(cu_seqlens, x, covers_all=False)
    if layout not in _LAYOUTS:
        raise ValueError(f"layout: expected one of {list(_LAYOUTS)}, got {layout!r}.")
    sizes = (taps - 1, x.shape[1])
    if layout == "channels_taps":
        sizes = sizes[::-1]
    if state.dtype != x.dtype:
        raise TypeError(f"state: expected {x.dtype} like x, got {state.dtype}; keep the pages in the model's dtype.")
    if state.ndim != 3 or tuple(state.shape[1:]) != sizes:
        raise ValueError(
            f"state: expected shape (pages, {sizes[0]}, {sizes[1]}) with layout={layout!r}, got {tuple(state.shape)}; "
            "the other layout has the last two dimensions swapped."
        )
    expect_device("state", state, x)
    expect_slots(slots, cu_seqlens.shape[0] - 1, state.shape[0], x)
    expect_has_initial(has_initial, cu_seqlens.shape[0] - 1, x)
    is_transposed = layout == "channels_taps"
    run = _causal_conv1d_varlen_ if needs_registered_op() else _update_
    return run(x, weight, bias, state, cu_seqlens, slots, has_initial, is_transposed, backend)


def _expect_arguments(op: str, impl: str | None, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[str, int]:
    """The backend and the number of taps."""
    expect_sequence("x", x, "(T, R)")
    taps = expect_taps(weight, bias, x.shape[1])
    return choose_kernel_backend(op, impl, x, "shifted"), taps


def _run(
    backend: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    history: Tensor | None,
    cu_seqlens: Tensor,
    has_initial: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if history is None:
        memory = x.new_zeros(cu_seqlens.shape[0] - 1, weight.shape[1] - 1, x.shape[1])
    else:
        history = memory = history.to(x.dtype)
        if has_initial is not None:
            memory = torch.where(has_initial[:, None, None], history, 0.0)
    if backend == "reference":
        return _reference(x, weight, bias, memory, cu_seqlens)
    if backend == "triton":
        y = run_causal_conv1d(backend, x, weight, bias, history, None, cu_seqlens, has_initial)
    else:
        places = places_after_memory(sequence_of_tokens(cu_seqlens, x.shape[0]), memory.shape[1])
        row = row_with_memory(x, memory, cu_seqlens, places)
        y = run_causal_conv1d(backend, row[None], weight, bias, None)[0].index_select(0, places)
    return y, last_tokens(x, memory, cu_seqlens)


def _reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, memory: Tensor, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor]:
    bounds = cu_seqlens.tolist()
    outputs, histories = [], []
    for row, (begin, end) in enumerate(itertools.pairwise(bounds)):
        history = memory[row : row + 1]
        if end > begin:
            y, history = causal_conv1d_reference(x[None, begin:end], weight, bias, history, None, None)
            outputs.append(y[0].to(x.dtype))
        histories.append(history)
    outputs.append(torch.zeros_like(x[bounds[-1] :]))
    return torch.cat(outputs), torch.cat(histories)


def _update_(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    cu_seqlens: Tensor,
    slots: Tensor,
    has_initial: Tensor,
    is_transposed: bool,
    backend: str,
) -> Tensor:
    pages = state.transpose(1, 2) if is_transposed else state
    if backend == "triton":
        from recurrent_gemma.modeling.ops.causal_conv1d.triton import causal_conv1d_triton_update_

        return causal_conv1d_triton_update_(x, weight, bias, pages, cu_seqlens, slots, has_initial)
    old = pages.index_select(0, slots)
    y, history = _run(backend, x, weight, bias, old, cu_seqlens, has_initial & (slots > 0))
    write_pages_(pages, history, old, cu_seqlens, slots)
    return torch.where(live_tokens(cu_seqlens, slots, x.shape[0]), y, 0.0)


_causal_conv1d_varlen_ = torch.library.custom_op(
    "recurrent_gemma::causal_conv1d_varlen_", _update_, mutates_args=("state",)
)


@_causal_conv1d_varlen_.register_fake
def _(x, weight, bias, state, cu_seqlens, slots, has_initial, is_transposed, backend):
    return x.new_empty(x.shape)
