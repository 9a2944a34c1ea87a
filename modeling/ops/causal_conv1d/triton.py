"""Causal depthwise convolution as Triton kernels, for rows without pads and for packed sequences.

A program takes a block of channels of one sequence through tiles of time. Each tap is a load of its own, from the
inputs or, before the first of them, from the history; the processor's caches serve all but the first.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from recurrent_gemma.modeling.ops.triton import contiguous, sequence_page, sequence_span, sizes

# Of one program and tile.
_CHANNELS = 64
_STEPS = 32
_WARPS = 4
# Programs for each block of channels: over sequences and, while those are few, over a sequence's tiles.
_PROGRAMS = 1024


def causal_conv1d_triton_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    history: Tensor | None,
    starts: Tensor | None,
    cu_seqlens: Tensor | None = None,
    has_initial: Tensor | None = None,
) -> Tensor:
    """Outputs in x's shape and dtype.

    Args:
        x: (B, L, R), or with ``cu_seqlens`` the tokens (T, R) of N sequences.
        history: (B, K - 1, R) or (N, K - 1, R).
        starts: (B, L) bool, or None if no document starts here.
        cu_seqlens: (N + 1) int32.
        has_initial: (N) bool, false where the history counts as zeros and is not read; all true when None.
    """
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    _launch_forward(x, weight, bias, contiguous(history), starts, cu_seqlens, has_initial, None, y)
    return y


def causal_conv1d_triton_update_(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    cu_seqlens: Tensor,
    slots: Tensor,
    has_initial: Tensor,
) -> Tensor:
    """Outputs (T, R) of x (T, R); ``state`` (slots, K - 1, R), of any strides, becomes the new histories."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    _launch_forward(x, weight, bias, state, None, cu_seqlens, has_initial, slots, y)
    return y


def causal_conv1d_triton_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    history: Tensor | None,
    starts: Tensor | None,
    cu_seqlens: Tensor | None = None,
    has_initial: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and history. Arguments as in the forward."""
    taps = weight.shape[1]
    rows, length, tokens, width = sizes(x, cu_seqlens)
    steps, splits = _tiling(rows, length, tokens, taps)
    programs = min(rows, _PROGRAMS)
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    grad_history = torch.zeros(rows, taps - 1, width, dtype=x.dtype, device=x.device)
    # Of the weight's taps, the nearest first, and of the bias.
    sums = torch.empty(programs * splits, taps + 1, width, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        _backward_kernel[(triton.cdiv(width, _CHANNELS), programs, splits)](
            grad.contiguous(),
            x.contiguous(),
            weight.contiguous(),
            contiguous(history),
            contiguous(starts),
            contiguous(cu_seqlens),
            contiguous(has_initial),
            grad_x,
            grad_history,
            sums,
            rows,
            tokens,
            length,
            width,
            has_history=history is not None,
            has_starts=starts is not None,
            is_packed=cu_seqlens is not None,
            has_flags=has_initial is not None,
            taps=taps,
            sum_rows=triton.next_power_of_2(taps + 1),
            steps=steps,
            channels=_CHANNELS,
            num_warps=_WARPS,
        )
    total = sums.sum(dim=0)
    grad_weight = total[:taps].flip(0).t().to(weight.dtype, memory_format=torch.contiguous_format)
    return grad_x, grad_weight, total[taps].to(weight.dtype), grad_history


def _launch_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    history: Tensor | None,
    starts: Tensor | None,
    cu_seqlens: Tensor | None,
    has_initial: Tensor | None,
    slots: Tensor | None,
    y: Tensor,
) -> None:
    taps = weight.shape[1]
    rows, length, tokens, width = sizes(x, cu_seqlens)
    steps, splits = _tiling(rows, length, tokens, taps)
    # With slots, one more sequence stands for the tokens after the last.
    sequences = rows if slots is None else rows + 1
    with torch.cuda.device_of(x):
        _forward_kernel[(triton.cdiv(width, _CHANNELS), sequences, splits)](
            x.contiguous(),
            weight.contiguous(),
            contiguous(bias),
            history,
            contiguous(starts),
            contiguous(cu_seqlens),
            contiguous(has_initial),
            contiguous(slots),
            y,
            rows,
            tokens,
            length,
            width,
            *(history.stride() if history is not None else (0, 0, 0)),
            has_bias=bias is not None,
            has_history=history is not None,
            has_starts=starts is not None,
            is_packed=cu_seqlens is not None,
            has_flags=has_initial is not None,
            has_slots=slots is not None,
            taps=taps,
            history_rows=triton.next_power_of_2(max(1, taps - 1)),
            steps=steps,
            channels=_CHANNELS,
            num_warps=_WARPS,
        )


def _tiling(sequences: int, length: int, tokens: int, taps: int) -> tuple[int, int]:
    """Steps of a tile, and over how many programs the tiles of a sequence are spread.

    The first tile holds all tokens that see the history, so that only its program reads what it may overwrite.
    """
    longest = length or tokens
    typical = length or (1 if tokens == sequences else _STEPS)
    steps = max(min(_STEPS, triton.next_power_of_2(typical)), triton.next_power_of_2(max(1, taps - 1)))
    return steps, min(triton.cdiv(longest, steps), max(1, _PROGRAMS // sequences))


@triton.jit
def _forward_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    history_ptr,
    starts_ptr,
    cu_seqlens_ptr,
    has_initial_ptr,
    slots_ptr,
    y_ptr,
    sequences,
    tokens,
    length,
    width,
    page_stride,
    tap_stride,
    channel_stride,
    has_bias: tl.constexpr,
    has_history: tl.constexpr,
    has_starts: tl.constexpr,
    is_packed: tl.constexpr,
    has_flags: tl.constexpr,
    has_slots: tl.constexpr,
    taps: tl.constexpr,
    history_rows: tl.constexpr,
    steps: tl.constexpr,
    channels: tl.constexpr,
):
    channel = tl.program_id(0) * channels + tl.arange(0, channels)
    sequence = tl.program_id(1).to(tl.int64)
    in_width = channel < width
    begin, end = sequence_span(cu_seqlens_ptr, sequence, sequences, length, tokens, is_packed)
    page, initial = sequence_page(slots_ptr, has_initial_ptr, sequence, sequences, has_slots, has_flags)
    count = end - begin
    oldest = tl.where(initial, 1 - taps, 0)  # of the inputs that exist, counted from the sequence's first token
    if has_history:
        history_ptr += page * page_stride + channel[None, :] * channel_stride
    for first in range(tl.program_id(2) * steps, count, tl.num_programs(2) * steps):
        step = first + tl.arange(0, steps)
        inside = step < count
        total = tl.zeros([steps, channels], dtype=tl.float32)
        if has_bias:
            total += tl.load(bias_ptr + channel, mask=in_width, other=0.0).to(tl.float32)[None, :]
        visible = inside
        for back in tl.static_range(taps):
            source = step - back
            if has_starts and back > 0:  # a document that starts after the source hides it
                mask = inside & (source + 1 >= 0)
                visible = visible & (tl.load(starts_ptr + begin + source + 1, mask=mask, other=0) == 0)
            place = (begin + source)[:, None] * width + channel[None, :]
            mask = (visible & (source >= 0))[:, None] & in_width[None, :]
            value = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
            if has_history:
                mask = (visible & (source < 0) & (source >= oldest))[:, None] & in_width[None, :]
                earlier = history_ptr + (taps - 1 + source)[:, None] * tap_stride
                value += tl.load(earlier, mask=mask, other=0.0).to(tl.float32)
            tap = tl.load(weight_ptr + channel * taps + (taps - 1 - back), mask=in_width, other=0.0).to(tl.float32)
            total += value * tap[None, :]
        if has_slots:
            total = tl.where(page > 0, total, 0.0)
        place = (begin + step)[:, None] * width + channel[None, :]
        mask = inside[:, None] & in_width[None, :]
        tl.store(y_ptr + place, total.to(y_ptr.dtype.element_ty), mask=mask)
    if has_slots:
        # The program of the first tile: no other reads the history.
        keeps = (tl.program_id(2) == 0) & (page > 0) & (count > 0)
        row = tl.arange(0, history_rows)
        kept = (row < tl.where(keeps, taps - 1, 0))[:, None] & in_width[None, :]
        source = (count - (taps - 1) + row)[:, None]
        place = (begin + source) * width + channel[None, :]
        value = tl.load(x_ptr + place, mask=kept & (source >= 0), other=0.0).to(tl.float32)
        earlier = history_ptr + (taps - 1 + source) * tap_stride
        value += tl.load(earlier, mask=kept & (source < 0) & (source >= oldest), other=0.0).to(tl.float32)
        tl.debug_barrier()  # all is read before anything is overwritten
        tl.store(history_ptr + row[:, None] * tap_stride, value.to(history_ptr.dtype.element_ty), mask=kept)


@triton.jit
def _backward_kernel(
    grad_ptr,
    x_ptr,
    weight_ptr,
    history_ptr,
    starts_ptr,
    cu_seqlens_ptr,
    has_initial_ptr,
    grad_x_ptr,
    grad_history_ptr,
    sums_ptr,
    sequences,
    tokens,
    length,
    width,
    has_history: tl.constexpr,
    has_starts: tl.constexpr,
    is_packed: tl.constexpr,
    has_flags: tl.constexpr,
    taps: tl.constexpr,
    sum_rows: tl.constexpr,
    steps: tl.constexpr,
    channels: tl.constexpr,
):
    channel = tl.program_id(0) * channels + tl.arange(0, channels)
    in_width = channel < width
    row = tl.arange(0, sum_rows)
    sums = tl.zeros([sum_rows, channels], dtype=tl.float32)
    # Inputs before the first token are the history's.
    lead: tl.constexpr = taps - 1 if has_history else 0
    for index in range(tl.program_id(1), sequences, tl.num_programs(1)):
        sequence = tl.cast(index, tl.int64)
        begin, end = sequence_span(cu_seqlens_ptr, sequence, sequences, length, tokens, is_packed)
        page, initial = sequence_page(None, has_initial_ptr, sequence, sequences, False, has_flags)
        count = end - begin
        oldest = tl.where(initial, 1 - taps, 0)
        for first in range(tl.program_id(2) * steps - lead, count, tl.num_programs(2) * steps):
            step = first + tl.arange(0, steps)
            of_x = (step >= 0) & (step < count)
            mask_x = of_x[:, None] & in_width[None, :]
            place = (begin + step)[:, None] * width + channel[None, :]
            value = tl.load(x_ptr + place, mask=mask_x, other=0.0).to(tl.float32)
            reached = of_x
            if has_history:
                of_history = (step < 0) & (step >= oldest)
                mask_history = of_history[:, None] & in_width[None, :]
                place_history = (page * (taps - 1) + taps - 1 + step)[:, None] * width + channel[None, :]
                value += tl.load(history_ptr + place_history, mask=mask_history, other=0.0).to(tl.float32)
                reached = of_x | of_history
            total = tl.zeros([steps, channels], dtype=tl.float32)
            for back in tl.static_range(taps):
                target = step + back
                inside = (target >= 0) & (target < count)
                if has_starts and back > 0:
                    reached = reached & (tl.load(starts_ptr + begin + target, mask=inside, other=0) == 0)
                mask = (reached & inside)[:, None] & in_width[None, :]
                place_grad = (begin + target)[:, None] * width + channel[None, :]
                grad = tl.load(grad_ptr + place_grad, mask=mask, other=0.0).to(tl.float32)
                tap = tl.load(weight_ptr + channel * taps + (taps - 1 - back), mask=in_width, other=0.0).to(tl.float32)
                total += grad * tap[None, :]
                sums += tl.where((row == back)[:, None], tl.sum(grad * value, axis=0)[None, :], 0.0)
                if back == 0:
                    sums += tl.where((row == taps)[:, None], tl.sum(grad, axis=0)[None, :], 0.0)
            tl.store(grad_x_ptr + place, total.to(grad_x_ptr.dtype.element_ty), mask=mask_x)
            if has_history:
                total = total.to(grad_history_ptr.dtype.element_ty)
                tl.store(grad_history_ptr + place_history, total, mask=mask_history)
    program = tl.program_id(1) * tl.num_programs(2) + tl.program_id(2)
    place = (program * (taps + 1) + row)[:, None] * width + channel[None, :]
    tl.store(sums_ptr + place, sums, mask=(row < taps + 1)[:, None] & in_width[None, :])
