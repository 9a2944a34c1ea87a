"""RG-LRU as ops that torch knows: fake implementations and a backward, whatever the backend."""

import torch
from torch import Tensor

from recurrent_gemma.modeling.ops.dispatch import (
    compiles_as_step,
    expect_floating,
    expect_shape,
    needs_registered_op,
)
from recurrent_gemma.modeling.ops.rg_lru.chunked import rg_lru_backward, rg_lru_forward


def expect_gates(x: Tensor, input_gate: Tensor, recurrence_gate: Tensor, a_param: Tensor, meaning: str) -> None:
    """Raise unless the gates are floating-point of x's shape, which ``meaning`` names, and ``a_param`` is (R,)."""
    for name, tensor in (("input_gate", input_gate), ("recurrence_gate", recurrence_gate)):
        expect_floating(name, tensor)
        expect_shape(name, tensor, x.shape, meaning)
    expect_floating("a_param", a_param)
    expect_shape("a_param", a_param, (x.shape[-1],), "(R,)")


def run_rg_lru(
    backend: str,
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    h0: Tensor | None,
    starts: Tensor | None = None,
    valid: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    has_initial: Tensor | None = None,
    *,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """States and last states on ``backend``, through the registered op where autograd or a tracer must see it.

    Args:
        backend: ``"chunked"`` or ``"triton"``; the second alone takes packed sequences.
        x, input_gate, recurrence_gate: (B, L, R), or the tokens (T, R) of N packed sequences.
        a_param: (R,).
        h0: (B, R) or (N, R). Packed sequences without one start documents.
        starts, valid: (B, L) bool, if not packed.
        cu_seqlens: (N + 1) int32, if packed.
        has_initial: (N) bool, if packed: false where a sequence starts a document and its h0 is not read.
        out_dtype: Of the states.
    """
    tensors = (x, input_gate, recurrence_gate, a_param, h0)
    if compiles_as_step(x):
        return rg_lru_forward(*tensors, starts, valid, out_dtype)
    run = _rg_lru if needs_registered_op(*tensors) else _forward
    return run(*tensors, starts, valid, cu_seqlens, has_initial, out_dtype, backend)


def _forward(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    h0: Tensor | None,
    starts: Tensor | None,
    valid: Tensor | None,
    cu_seqlens: Tensor | None,
    has_initial: Tensor | None,
    out_dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor]:
    arguments = (x, input_gate, recurrence_gate, a_param, h0, starts, valid, out_dtype)
    if backend == "chunked":
        return rg_lru_forward(*arguments)
    from recurrent_gemma.modeling.ops.rg_lru.triton import rg_lru_triton_forward

    return rg_lru_triton_forward(*arguments, cu_seqlens, has_initial)


_rg_lru = torch.library.custom_op("recurrent_gemma::rg_lru", _forward, mutates_args=())


@_rg_lru.register_fake
def _(x, input_gate, recurrence_gate, a_param, h0, starts, valid, cu_seqlens, has_initial, out_dtype, backend):
    return x.new_empty(x.shape, dtype=out_dtype), _empty_last(x, cu_seqlens)


def _empty_last(x: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    rows = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return x.new_empty((rows, x.shape[-1]), dtype=torch.promote_types(x.dtype, torch.float32))


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
    cu_seqlens: Tensor | None,
    has_initial: Tensor | None,
    states: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    arguments = (grad_states, grad_last, x, input_gate, recurrence_gate, a_param, h0, starts, valid, states)
    if backend == "chunked":
        return rg_lru_backward(*arguments)
    from recurrent_gemma.modeling.ops.rg_lru.triton import rg_lru_triton_backward

    return rg_lru_triton_backward(*arguments, cu_seqlens, has_initial)


@_rg_lru_backward.register_fake
def _(
    grad_states,
    grad_last,
    x,
    input_gate,
    recurrence_gate,
    a_param,
    h0,
    starts,
    valid,
    cu_seqlens,
    has_initial,
    states,
    backend,
):
    like = [t.new_empty(t.shape) for t in (x, input_gate, recurrence_gate, a_param)]
    return *like, _empty_last(x, cu_seqlens)


def _setup_context(ctx, inputs, output):
    *tensors, _, ctx.backend = inputs
    # The states are kept only where they are the op's output anyway; otherwise the backward computes them again.
    states = output[0] if output[0].dtype == output[1].dtype else None
    ctx.save_for_backward(*tensors, states)


def _backward(ctx, grad_states, grad_last):
    saved = ctx.saved_tensors  # once: checkpointing computes them when they are asked for
    grads = _rg_lru_backward(grad_states, grad_last, *saved, ctx.backend)
    h0 = saved[4]
    grad_h0 = None if h0 is None else grads[4].to(h0.dtype)
    return *grads[:4], grad_h0, None, None, None, None, None, None


_rg_lru.register_autograd(_backward, setup_context=_setup_context)
