"""RG-LRU on Triton kernels, for rows and for packed sequences: what a launch needs and what it gives.

``TRITON_INTERPRET=1`` runs the kernels on CPU, for tests.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from recurrent_gemma.modeling.ops.rg_lru.gates import DECAY_SCALE, MAX_SQRT_GRADIENT, decay_rate
from recurrent_gemma.modeling.ops.rg_lru.kernels_triton import backward_kernel, forward_kernel
from recurrent_gemma.modeling.ops.triton import contiguous, sizes

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
    cu_seqlens: Tensor | None = None,
    has_initial: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """States in x's shape and ``out_dtype``, and the last state of each sequence in fp32.

    Args:
        x, input_gate, recurrence_gate: (B, L, R), or with ``cu_seqlens`` the tokens (T, R) of N sequences.
        a_param: (R,).
        h0: (B, R) or (N, R). Packed sequences without one start documents.
        starts, valid: (B, L) bool.
        cu_seqlens: (N + 1) int32.
        has_initial: (N) bool, false where a sequence starts a document and its h0 is not read; all true when None.
    """
    states = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    rows = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    last = torch.empty(rows, x.shape[-1], dtype=torch.float32, device=x.device)
    h0 = contiguous(h0)
    _launch_forward(
        x, input_gate, recurrence_gate, a_param, h0, starts, valid, cu_seqlens, has_initial, None, states, last
    )
    return states, last


def rg_lru_triton_update_(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    state: Tensor,
    cu_seqlens: Tensor,
    slots: Tensor,
    has_initial: Tensor,
) -> Tensor:
    """Outputs (T, R) of x (T, R); ``state`` (slots, R), of any strides, becomes the last states."""
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch_forward(
        x, input_gate, recurrence_gate, a_param, state, None, None, cu_seqlens, has_initial, slots, y, state
    )
    return y


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
    cu_seqlens: Tensor | None = None,
    has_initial: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, input_gate, recurrence_gate, a_param and h0.

    Args:
        grad_states: In x's shape.
        grad_last: (B, R) or (N, R).
        states: In x's shape and fp32 as the forward returned them, or None to compute them again.

    The others are as in the forward.
    """
    tensors = (x, input_gate, recurrence_gate)
    marks = (starts, valid)
    packing = (cu_seqlens, has_initial)
    if states is None:
        states, _ = rg_lru_triton_forward(*tensors, a_param, h0, *marks, torch.float32, *packing)
    rows, length, tokens, width = sizes(x, cu_seqlens)
    gradients = [torch.empty(t.shape, dtype=t.dtype, device=x.device) for t in tensors]
    grad_rate = torch.empty(rows, width, dtype=torch.float32, device=x.device)
    grad_h0 = torch.empty_like(grad_rate)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        backward_kernel[(triton.cdiv(width, _CHANNELS), rows)](
            grad_states.contiguous(),
            grad_last.float().contiguous(),
            *map(contiguous, tensors),
            decay_rate(a_param.float()),
            *map(contiguous, (h0, *marks, *packing)),
            states.contiguous(),
            *gradients,
            grad_rate,
            grad_h0,
            rows,
            tokens,
            length,
            width,
            least_multiplier=0.5 / MAX_SQRT_GRADIENT,
            **_options(rows, length, tokens, h0, *marks, *packing),
        )
    grad_a_param = grad_rate.sum(dim=0) * DECAY_SCALE * torch.sigmoid(a_param.float())
    grad_x, grad_input_gate, grad_recurrence_gate = gradients
    return grad_x, grad_input_gate, grad_recurrence_gate, grad_a_param.to(a_param.dtype), grad_h0


def _launch_forward(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    h0: Tensor | None,
    starts: Tensor | None,
    valid: Tensor | None,
    cu_seqlens: Tensor | None,
    has_initial: Tensor | None,
    slots: Tensor | None,
    states: Tensor,
    last: Tensor,
) -> None:
    rows, length, tokens, width = sizes(x, cu_seqlens)
    # With slots, one more sequence stands for the tokens after the last.
    sequences = rows if slots is None else rows + 1
    with torch.cuda.device_of(x):
        forward_kernel[(triton.cdiv(width, _CHANNELS), sequences)](
            *map(contiguous, (x, input_gate, recurrence_gate)),
            decay_rate(a_param.float()),
            h0,
            *map(contiguous, (starts, valid, cu_seqlens, has_initial, slots)),
            states,
            last,
            rows,
            tokens,
            length,
            width,
            *last.stride(),
            has_slots=slots is not None,
            **_options(rows, length, tokens, h0, starts, valid, cu_seqlens, has_initial),
        )


def _options(
    sequences: int,
    length: int,
    tokens: int,
    h0: Tensor | None,
    starts: Tensor | None,
    valid: Tensor | None,
    cu_seqlens: Tensor | None,
    has_initial: Tensor | None,
) -> dict[str, Any]:
    """What the kernels are compiled for."""
    typical = length or (1 if tokens == sequences else _STEPS)  # of packed sequences, only the number is known
    return {
        "has_h0": h0 is not None,
        "has_starts": starts is not None,
        "has_valid": valid is not None,
        "is_packed": cu_seqlens is not None,
        "has_flags": has_initial is not None,
        "steps": min(_STEPS, triton.next_power_of_2(typical)),
        "channels": _CHANNELS,
        "num_warps": _WARPS,
    }
