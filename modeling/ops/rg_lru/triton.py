"""RG-LRU as Triton kernels: gates and scan of a block of channels in one program, tile by tile of time.

A tile's recurrence is an associative scan, and its last state goes on to the next tile. The backward runs from the last
tile to the first and computes the gates again. ``TRITON_INTERPRET=1`` runs the kernels on CPU, for tests.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from recurrent_gemma.modeling.ops.rg_lru.gates import DECAY_SCALE, MAX_SQRT_GRADIENT, decay_rate

# Of one program and tile.
_CHANNELS = 16
_STEPS = 64
_WARPS = 2


def rg_lru_triton_forward(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    h0: Tensor | None,
    starts: Tensor | None,
    valid: Tensor | None,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """States (B, L, R) in ``out_dtype`` and the last state (B, R) in fp32."""
    batch, length, width = x.shape
    states = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    last = torch.empty(batch, width, dtype=torch.float32, device=x.device)
    x, input_gate, recurrence_gate, h0, starts, valid = map(
        _contiguous, (x, input_gate, recurrence_gate, h0, starts, valid)
    )
    launch = _forward_kernel[(triton.cdiv(width, _CHANNELS), batch)]
    with torch.cuda.device_of(x):  # Triton launches on the current device
        launch(
            x,
            input_gate,
            recurrence_gate,
            decay_rate(a_param.float()),
            h0,
            starts,
            valid,
            states,
            last,
            length,
            width,
            **_options(length, h0, starts, valid),
        )
    return states, last


def rg_lru_triton_backward(
    grad_states: Tensor,
    grad_last: Tensor,
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    h0: Tensor | None,
    starts: Tensor | None,
    valid: Tensor | None,
    states: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, input_gate, recurrence_gate, a_param and h0; arguments as in ``rg_lru_backward``."""
    if states is None:
        states, _ = rg_lru_triton_forward(x, input_gate, recurrence_gate, a_param, h0, starts, valid, torch.float32)
    batch, length, width = x.shape
    gradients = [torch.empty(x.shape, dtype=t.dtype, device=x.device) for t in (x, input_gate, recurrence_gate)]
    grad_rate = torch.empty(batch, width, dtype=torch.float32, device=x.device)
    grad_h0 = torch.empty_like(grad_rate)
    x, input_gate, recurrence_gate, h0, starts, valid = map(
        _contiguous, (x, input_gate, recurrence_gate, h0, starts, valid)
    )
    launch = _backward_kernel[(triton.cdiv(width, _CHANNELS), batch)]
    with torch.cuda.device_of(x):
        launch(
            _contiguous(grad_states),
            _contiguous(grad_last.float()),
            x,
            input_gate,
            recurrence_gate,
            decay_rate(a_param.float()),
            h0,
            starts,
            valid,
            _contiguous(states),
            *gradients,
            grad_rate,
            grad_h0,
            length,
            width,
            least_multiplier=0.5 / MAX_SQRT_GRADIENT,
            **_options(length, h0, starts, valid),
        )
    grad_a_param = grad_rate.sum(dim=0) * DECAY_SCALE * torch.sigmoid(a_param.float())
    grad_x, grad_input_gate, grad_recurrence_gate = gradients
    return grad_x, grad_input_gate, grad_recurrence_gate, grad_a_param.to(a_param.dtype), grad_h0


def _contiguous(tensor: Any) -> Any:
    return None if tensor is None else tensor.contiguous()


def _options(length: int, h0: Tensor | None, starts: Tensor | None, valid: Tensor | None) -> dict[str, Any]:
    """What the kernels are compiled for."""
    return {
        "has_h0": h0 is not None,
        "has_starts": starts is not None,
        "has_valid": valid is not None,
        "steps": min(_STEPS, triton.next_power_of_2(length)),
        "channels": _CHANNELS,
        "num_warps": _WARPS,
    }


@triton.jit
def _compose(a, x, later_a, later_x):
    """h -> later_a (a h + x) + later_x."""
    return a * later_a, later_a * x + later_x


@triton.jit
def _gates(input_gate, recurrence_gate, rate, start, is_valid):
    """Opened gates, a and the multiplier of a tile; a = 0 and multiplier 1 at starts, a = 1 at pads."""
    i = tl.sigmoid(input_gate)
    r = tl.sigmoid(recurrence_gate)
    y = 2.0 * r * rate
    # -expm1(y): the series where 1 - exp(y) would cancel, with a remainder below 2^-24 of it.
    series = 1.0 + y * (1.0 / 9.0)
    for n in tl.static_range(8, 1, -1):
        series = 1.0 + y * (1.0 / n) * series
    squared = tl.where(y > -0.5, -y * series, 1.0 - tl.exp(y))
    a = tl.where(start, 0.0, tl.exp(r * rate))
    multiplier = tl.where(start, 1.0, tl.sqrt(squared))
    return i, r, tl.where(is_valid, a, 1.0), multiplier


@triton.jit
def _markers(starts, valid, row, inside, has_starts: tl.constexpr, has_valid: tl.constexpr):
    """Which steps (T, 1) of a tile start a document, and which are tokens; steps beyond the end are none."""
    is_valid = inside
    if has_valid:
        is_valid = inside & (tl.load(valid + row, mask=inside, other=0) != 0)
    start = inside & (row < 0)
    if has_starts:
        start = is_valid & (tl.load(starts + row, mask=inside, other=0) != 0)
    return start[:, None], is_valid[:, None]


@triton.jit
def _forward_kernel(
    x_ptr,
    input_gate_ptr,
    recurrence_gate_ptr,
    rate_ptr,
    h0_ptr,
    starts_ptr,
    valid_ptr,
    states_ptr,
    last_ptr,
    length,
    width,
    has_h0: tl.constexpr,
    has_starts: tl.constexpr,
    has_valid: tl.constexpr,
    steps: tl.constexpr,
    channels: tl.constexpr,
):
    channel = tl.program_id(0) * channels + tl.arange(0, channels)
    batch = tl.program_id(1).to(tl.int64)
    in_width = channel < width
    step = tl.arange(0, steps)
    rate = tl.load(rate_ptr + channel, mask=in_width, other=0.0)
    carry = tl.zeros([channels], dtype=tl.float32)
    if has_h0:
        carry = tl.load(h0_ptr + batch * width + channel, mask=in_width, other=0.0).to(tl.float32)
    for begin in range(0, length, steps):
        inside = begin + step < length
        row = batch * length + begin + step
        mask = inside[:, None] & in_width[None, :]
        place = row[:, None] * width + channel[None, :]
        x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
        input_gate = tl.load(input_gate_ptr + place, mask=mask, other=0.0).to(tl.float32)
        recurrence_gate = tl.load(recurrence_gate_ptr + place, mask=mask, other=0.0).to(tl.float32)
        start, is_valid = _markers(starts_ptr, valid_ptr, row, inside, has_starts, has_valid)
        i, _, a, multiplier = _gates(input_gate, recurrence_gate, rate[None, :], start, is_valid)
        inputs = tl.where(is_valid, multiplier * i * x, 0.0)
        product, h = tl.associative_scan((a, inputs), 0, _compose)
        h += product * carry[None, :]
        tl.store(states_ptr + place, h.to(states_ptr.dtype.element_ty), mask=mask)
        # Steps beyond the end pass the state on.
        carry = tl.sum(tl.where((step == steps - 1)[:, None], h, 0.0), axis=0)
    tl.store(last_ptr + batch * width + channel, carry, mask=in_width)


@triton.jit
def _backward_kernel(
    grad_states_ptr,
    grad_last_ptr,
    x_ptr,
    input_gate_ptr,
    recurrence_gate_ptr,
    rate_ptr,
    h0_ptr,
    starts_ptr,
    valid_ptr,
    states_ptr,
    grad_x_ptr,
    grad_input_gate_ptr,
    grad_recurrence_gate_ptr,
    grad_rate_ptr,
    grad_h0_ptr,
    length,
    width,
    has_h0: tl.constexpr,
    has_starts: tl.constexpr,
    has_valid: tl.constexpr,
    least_multiplier: tl.constexpr,
    steps: tl.constexpr,
    channels: tl.constexpr,
):
    channel = tl.program_id(0) * channels + tl.arange(0, channels)
    batch = tl.program_id(1).to(tl.int64)
    in_width = channel < width
    step = tl.arange(0, steps)
    rate = tl.load(rate_ptr + channel, mask=in_width, other=0.0)
    grad_rate = tl.zeros([channels], dtype=tl.float32)
    # The gradient of h_t arrives through a_{t+1}; at the last step it is the last state's own.
    carry = tl.load(grad_last_ptr + batch * width + channel, mask=in_width, other=0.0)
    tiles = tl.cdiv(length, steps)
    for tile in range(tiles):
        begin = (tiles - 1 - tile) * steps
        inside = begin + step < length
        row = batch * length + begin + step
        mask = inside[:, None] & in_width[None, :]
        place = row[:, None] * width + channel[None, :]
        x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
        input_gate = tl.load(input_gate_ptr + place, mask=mask, other=0.0).to(tl.float32)
        recurrence_gate = tl.load(recurrence_gate_ptr + place, mask=mask, other=0.0).to(tl.float32)
        start, is_valid = _markers(starts_ptr, valid_ptr, row, inside, has_starts, has_valid)
        i, r, a, multiplier = _gates(input_gate, recurrence_gate, rate[None, :], start, is_valid)

        # a of the next step; beyond the end 1, for the last state's gradient.
        next_inside = begin + step + 1 < length
        next_mask = next_inside[:, None] & in_width[None, :]
        next_gate = tl.load(recurrence_gate_ptr + place + width, mask=next_mask, other=0.0).to(tl.float32)
        next_start, next_valid = _markers(starts_ptr, valid_ptr, row + 1, next_inside, has_starts, has_valid)
        next_a = tl.where(next_start, 0.0, tl.exp(tl.sigmoid(next_gate) * rate[None, :]))
        next_a = tl.where(next_valid, next_a, 1.0)

        grad = tl.load(grad_states_ptr + place, mask=mask, other=0.0).to(tl.float32)
        product, grad_h = tl.associative_scan((next_a, grad), 0, _compose, reverse=True)
        grad_h += product * carry[None, :]
        carry = tl.sum(tl.where((step == 0)[:, None], grad_h, 0.0), axis=0)

        earlier = mask & (begin + step > 0)[:, None]
        previous = tl.load(states_ptr + place - width, mask=earlier, other=0.0).to(tl.float32)
        if has_h0:
            first = tl.load(h0_ptr + batch * width + channel, mask=in_width, other=0.0).to(tl.float32)
            previous = tl.where((begin + step == 0)[:, None], first[None, :], previous)
        grad_log_a = grad_h * previous * a

        token_grad = tl.where(is_valid, grad_h, 0.0)
        tl.store(grad_x_ptr + place, (token_grad * i * multiplier).to(grad_x_ptr.dtype.element_ty), mask=mask)
        grad_multiplier = token_grad * x * i
        grad_input_gate = grad_multiplier * multiplier * (1.0 - i)
        tl.store(grad_input_gate_ptr + place, grad_input_gate.to(grad_input_gate_ptr.dtype.element_ty), mask=mask)
        # d multiplier / d log a = -a^2 / sqrt(1 - a^2)
        grad_log_a -= grad_multiplier * a * a / tl.maximum(multiplier, least_multiplier)
        grad_log_a = tl.where(start | (is_valid == 0), 0.0, grad_log_a) * r
        grad_rate += tl.sum(grad_log_a, axis=0)
        grad_recurrence_gate = grad_log_a * rate[None, :] * (1.0 - r)
        tl.store(
            grad_recurrence_gate_ptr + place,
            grad_recurrence_gate.to(grad_recurrence_gate_ptr.dtype.element_ty),
            mask=mask,
        )
        if begin == 0:
            first_a = tl.sum(tl.where((step == 0)[:, None], a, 0.0), axis=0)
            tl.store(grad_h0_ptr + batch * width + channel, carry * first_a, mask=in_width)
    tl.store(grad_rate_ptr + batch * width + channel, grad_rate, mask=in_width)
