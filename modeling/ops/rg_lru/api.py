"""Real-Gated Linear Recurrent Unit: gates and scan as one op."""

import torch
from torch import Tensor

from recurrent_gemma.modeling.ops.dispatch import (
    choose_kernel_backend,
    expect_floating,
    expect_markers,
    expect_sequence,
    expect_shape,
    refuse_forward_mode,
)
from recurrent_gemma.modeling.ops.rg_lru.op import expect_gates, run_rg_lru
from recurrent_gemma.modeling.ops.rg_lru.reference import rg_lru_reference


def rg_lru(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    h0: Tensor | None = None,
    *,
    starts: Tensor | None = None,
    valid: Tensor | None = None,
    return_states: bool = False,
    impl: str | None = None,
) -> tuple[Tensor, ...]:
    """Gated linear recurrence of the Griffin family (arXiv 2402.19427, equations 1 to 4).

    ``h_t = a_t h_{t-1} + sqrt(1 - a_t^2) sigmoid(input_gate_t) x_t`` with
    ``log a_t = -8 sigmoid(recurrence_gate_t) softplus(a_param)``. At a document's first token a is 0 and the square
    root is 1; at a pad the state passes through unchanged. Computed in fp32 (fp64 for fp64 inputs) whatever the dtype.

    Args:
        x: (B, L, R), any floating dtype; B, L, R >= 1.
        input_gate: (B, L, R), before the sigmoid.
        recurrence_gate: (B, L, R), before the sigmoid.
        a_param: (R,).
        h0: (B, R), the state before the first step; zeros when None.
        starts: (B, L) bool, true at the first token of a document.
        valid: (B, L) bool, false at pads; all valid when None. A start at a pad is ignored.
        return_states: Also return every state in fp32, which makes a snapshot at any token a slice.
        impl: ``"triton"`` (default on CUDA devices, where Triton is installed), ``"chunked"`` (default elsewhere, and
            for fp64) or ``"reference"``; forces a backend.

    Returns:
        y (B, L, R) in x's dtype (at a pad: the state passed through), h_last (B, R) in fp32 (fp64 for fp64 inputs),
        and with ``return_states`` the states (B, L, R) in the dtype of h_last.

    Raises:
        TypeError: A tensor has the wrong kind of dtype.
        ValueError: A shape disagrees with x's, a dimension is empty, or ``impl`` does not exist or cannot run here.
        NotImplementedError: Forward-mode or second derivatives are asked for.
    """
    expect_sequence("x", x)
    backend = choose_kernel_backend("rg_lru", impl, x, "chunked")
    batch, length, width = x.shape
    expect_gates(x, input_gate, recurrence_gate, a_param, "(B, L, R)")
    if h0 is not None:
        expect_floating("h0", h0)
        expect_shape("h0", h0, (batch, width), "(B, R)")
    expect_markers("starts", starts, batch, length)
    expect_markers("valid", valid, batch, length)
    if starts is not None and valid is not None:
        starts = starts & valid

    if backend == "reference":
        states, h_last = rg_lru_reference(x, input_gate, recurrence_gate, a_param, h0, starts, valid)
    else:
        out_dtype = torch.promote_types(x.dtype, torch.float32) if return_states else x.dtype
        refuse_forward_mode("rg_lru", x, input_gate, recurrence_gate, a_param, h0)
        states, h_last = run_rg_lru(
            backend, x, input_gate, recurrence_gate, a_param, h0, starts, valid, out_dtype=out_dtype
        )
    y = states.to(x.dtype)
    return (y, h_last, states) if return_states else (y, h_last)
