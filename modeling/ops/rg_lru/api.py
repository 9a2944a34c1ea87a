"""Real-Gated Linear Recurrent Unit: gates and scan as one op."""

from collections.abc import Callable

import torch
from torch import Tensor

from recurrent_gemma.modeling.ops.dispatch import (
    choose_kernel_backend,
    expect_floating,
    expect_markers,
    expect_sequence,
    expect_shape,
    needs_registered_op,
    refuse_forward_mode,
)
from recurrent_gemma.modeling.ops.rg_lru.chunked import rg_lru_backward, rg_lru_forward
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
    for name, tensor in (("input_gate", input_gate), ("recurrence_gate", recurrence_gate)):
        expect_floating(name, tensor)
        expect_shape(name, tensor, x.shape, "(B, L, R)")
    expect_floating("a_param", a_param)
    expect_shape("a_param", a_param, (width,), "(R,)")
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
        arguments = (x, input_gate, recurrence_gate, a_param, h0, starts, valid, out_dtype)
        if needs_registered_op(*arguments[:5]):
            states, h_last = _rg_lru(*arguments, backend)
        else:
            states, h_last = _forward_of(backend)(*arguments)
    y = states.to(x.dtype)
    return (y, h_last, states) if return_states else (y, h_last)


def _forward_of(backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
    if backend == "chunked":
        return rg_lru_forward
    from recurrent_gemma.modeling.ops.rg_lru.triton import rg_lru_triton_forward

    return rg_lru_triton_forward


def _backward_of(backend: str) -> Callable[..., tuple[Tensor, ...]]:
    if backend == "chunked":
        return rg_lru_backward
    from recurrent_gemma.modeling.ops.rg_lru.triton import rg_lru_triton_backward

    return rg_lru_triton_backward


@torch.library.custom_op("recurrent_gemma::rg_lru", mutates_args=())
def _rg_lru(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    h0: Tensor | None,
    starts: Tensor | None,
    valid: Tensor | None,
    out_dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return _forward_of(backend)(x, input_gate, recurrence_gate, a_param, h0, starts, valid, out_dtype)


@_rg_lru.register_fake
def _(x, input_gate, recurrence_gate, a_param, h0, starts, valid, out_dtype, backend):
    state_dtype = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(x.shape, dtype=out_dtype), x.new_empty((x.shape[0], x.shape[2]), dtype=state_dtype)


@torch.library.custom_op("recurrent_gemma::rg_lru_backward", mutates_args=())
def _rg_lru_backward(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gradients = _backward_of(backend)(
        grad_states, grad_last, x, input_gate, recurrence_gate, a_param, h0, starts, valid, states
    )
    grad_x, grad_input_gate, grad_recurrence_gate, grad_a_param, grad_h0 = gradients
    return grad_x, grad_input_gate, grad_recurrence_gate, grad_a_param, grad_h0


@_rg_lru_backward.register_fake
def _(grad_states, grad_last, x, input_gate, recurrence_gate, a_param, h0, starts, valid, states, backend):
    state_dtype = torch.promote_types(x.dtype, torch.float32)
    like = [t.new_empty(t.shape) for t in (x, input_gate, recurrence_gate, a_param)]
    return *like, x.new_empty((x.shape[0], x.shape[2]), dtype=state_dtype)


def _setup_context(ctx, inputs, output):
    *tensors, _, ctx.backend = inputs
    # The states are kept only where they are the op's output anyway; otherwise the backward computes them again.
    states = output[0] if output[0].dtype == output[1].dtype else None
    ctx.save_for_backward(*tensors, states)


def _backward(ctx, grad_states, grad_last):
    x, *rest, h0, starts, valid, states = ctx.saved_tensors
    grads = _rg_lru_backward(grad_states, grad_last, x, *rest, h0, starts, valid, states, ctx.backend)
    grad_h0 = None if h0 is None else grads[4].to(h0.dtype)
    return *grads[:4], grad_h0, None, None, None, None


_rg_lru.register_autograd(_backward, setup_context=_setup_context)
