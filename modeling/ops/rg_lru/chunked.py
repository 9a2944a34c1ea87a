"""RG-LRU in plain torch for any device: gates and scan together, in blocks of time that stay in cache.

Nothing of size (B, L, R) is made beyond the results: every block computes its gates in place and scans in place. The
backward recomputes the gates block by block, from the last block to the first, and runs the scan in reverse.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from recurrent_gemma.modeling.ops.linear_scan.chunked import block_length, scan_block_
from recurrent_gemma.modeling.ops.rg_lru.gates import DECAY_SCALE, MAX_SQRT_GRADIENT, decay_rate


class _Block(NamedTuple):
    """One block of time and the gates at its steps, each (B, T, R) in the compute dtype; the next block reuses them."""

    span: slice
    input_gate: Tensor  # sigmoid applied
    recurrence_gate: Tensor  # sigmoid applied
    a: Tensor  # 0 at a document's start, 1 at a pad
    multiplier: Tensor  # sqrt(1 - a^2); 1 at a document's start


def rg_lru_forward(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    h0: Tensor | None,
    starts: Tensor | None,
    valid: Tensor | None,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """States (B, L, R) in ``out_dtype`` and the last state (B, R) in the compute dtype."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if x.shape[1] == 1:
        return _one_step(x, input_gate, recurrence_gate, a_param, h0, starts, valid, dtype, out_dtype)
    states = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    carry = x.new_zeros(x.shape[0], x.shape[2], dtype=dtype) if h0 is None else h0.to(dtype)
    for block in _blocks(input_gate, recurrence_gate, a_param, starts, valid, dtype):
        span = block.span
        h = states[:, span] if out_dtype == dtype else torch.empty_like(block.a)
        torch.mul(block.input_gate, block.multiplier, out=h).mul_(x[:, span])
        if valid is not None:
            _fill_columns(h, ~valid[:, span], 0.0)
        carry = scan_block_(block.a, h, carry)
        if out_dtype != dtype:
            states[:, span] = h
    return states, carry


def rg_lru_backward(
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
    """Gradients of x, input_gate, recurrence_gate, a_param and h0.

    Args:
        grad_states: (B, L, R).
        grad_last: (B, R).
        states: (B, L, R) in the compute dtype as the forward returned them, or None to compute them again.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    if states is None:
        states, _ = rg_lru_forward(x, input_gate, recurrence_gate, a_param, h0, starts, valid, dtype)
    rate = decay_rate(a_param.to(dtype))
    grad_rate = torch.zeros_like(rate)
    grad_x, grad_input_gate, grad_recurrence_gate = (
        torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x, input_gate, recurrence_gate)
    )
    first = states.new_zeros(states.shape[0], 1, states.shape[2]) if h0 is None else h0.to(dtype)[:, None]
    # The gradient of h_t arrives through a_{t+1}; at the last step it is the last state's own.
    carry = grad_last.to(dtype)
    a_after = torch.ones_like(carry)[:, None]
    for block in _blocks(input_gate, recurrence_gate, a_param, starts, valid, dtype, last_first=True):
        span, i, r, a, multiplier = block
        begin, end = span.start, span.stop
        grad_h = grad_states[:, span].to(dtype, copy=True)
        carry = scan_block_(torch.cat((a[:, 1:], a_after), dim=1), grad_h, carry, reverse=True)
        a_after = a[:, :1].clone()
        previous = states[:, begin - 1 : end - 1] if begin else torch.cat((first, states[:, : end - 1]), dim=1)
        grad_log_a = torch.mul(grad_h, previous).mul_(a)

        if valid is not None:
            _fill_columns(grad_h, ~valid[:, span], 0.0)
        grad_x[:, span] = torch.mul(grad_h, i).mul_(multiplier)
        grad_h.mul_(x[:, span]).mul_(i)  # gradient of the multiplier
        grad_input_gate[:, span] = torch.mul(grad_h, multiplier).mul_(1 - i)
        # d multiplier / d log a = -a^2 / sqrt(1 - a^2)
        grad_h.mul_(a).mul_(a).div_(multiplier.clamp_(min=0.5 / MAX_SQRT_GRADIENT))
        grad_log_a.sub_(grad_h)
        for fixed in (starts, None if valid is None else ~valid):  # a does not depend on the gate there
            if fixed is not None:
                _fill_columns(grad_log_a, fixed[:, span], 0.0)
        grad_log_a.mul_(r)
        grad_rate.add_(grad_log_a.sum(dim=(0, 1)))
        grad_recurrence_gate[:, span] = grad_log_a.mul_(rate).mul_(1 - r)
    grad_a_param = grad_rate * DECAY_SCALE * torch.sigmoid(a_param.to(dtype))
    grad_h0 = carry.mul_(a_after[:, 0])
    return grad_x, grad_input_gate, grad_recurrence_gate, grad_a_param.to(a_param.dtype), grad_h0


def _one_step(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    h0: Tensor | None,
    starts: Tensor | None,
    valid: Tensor | None,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The same for a single step, where the machinery of blocks would cost more than the arithmetic."""
    if x.dtype != dtype:
        x, input_gate, recurrence_gate = (t.to(dtype) for t in (x, input_gate, recurrence_gate))
    log_a = torch.sigmoid(recurrence_gate).mul_(decay_rate(a_param.to(dtype)))
    multiplier = torch.mul(log_a, 2.0).expm1_().neg_().sqrt_()
    before = None if h0 is None else h0[:, None].to(dtype)
    h = torch.zeros_like(x) if before is None else log_a.exp_().mul_(before)
    if starts is not None:
        multiplier.masked_fill_(starts[..., None], 1.0)
        h.masked_fill_(starts[..., None], 0.0)
    h.addcmul_(torch.sigmoid(input_gate).mul_(x), multiplier)
    if valid is not None:
        h = torch.where(valid[..., None], h, 0.0 if before is None else before)
    return h.to(out_dtype, copy=True), h[:, 0]


def _blocks(
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    starts: Tensor | None,
    valid: Tensor | None,
    dtype: torch.dtype,
    *,
    last_first: bool = False,
) -> Iterator[_Block]:
    batch, length, width = input_gate.shape
    size = min(length, block_length(batch, width, dtype))
    buffers = torch.empty(4, batch, size, width, dtype=dtype, device=input_gate.device)
    rate = decay_rate(a_param.to(dtype))
    begins = range(0, length, size)
    for begin in reversed(begins) if last_first else begins:
        span = slice(begin, min(length, begin + size))
        i, r, a, multiplier = buffers[:, :, : span.stop - span.start].unbind()
        for gate, out in ((input_gate, i), (recurrence_gate, r)):
            if gate.dtype == dtype:
                torch.sigmoid(gate[:, span], out=out)
            else:
                out.copy_(gate[:, span]).sigmoid_()
        torch.mul(r, rate, out=a)
        torch.mul(a, 2.0, out=multiplier).expm1_().neg_().sqrt_()
        a.exp_()
        if starts is not None:
            _fill_columns(a, starts[:, span], 0.0)
            _fill_columns(multiplier, starts[:, span], 1.0)
        if valid is not None:
            _fill_columns(a, ~valid[:, span], 1.0)
        yield _Block(span, i, r, a, multiplier)


def _fill_columns(x: Tensor, where: Tensor, value: float) -> None:
    """x (B, T, R) = value in place, at the columns that ``where`` (B, T) marks."""
    if x.device.type == "cpu":
        # Few columns are marked, as a rule: masked_fill_ would pass over all of x.
        x.index_put_(where.nonzero(as_tuple=True), x.new_tensor(value))
    else:
        x.masked_fill_(where[..., None], value)
