"""Causal convolution as ops that torch knows: fake implementations and a backward, whatever the backend."""

import torch
from torch import Tensor

from recurrent_gemma.modeling.ops.causal_conv1d.shifted import causal_conv1d_backward, causal_conv1d_forward
from recurrent_gemma.modeling.ops.dispatch import (
    compiles_as_step,
    expect_floating,
    expect_shape,
    needs_registered_op,
)


def expect_taps(weight: Tensor, bias: Tensor | None, width: int) -> int:
    """The number of taps of a ``weight`` (R, K) for R = ``width``; raise unless it and ``bias`` (R,) are such."""
    expect_floating("weight", weight)
    if weight.ndim != 2 or weight.shape[0] != width or weight.shape[1] < 1:
        raise ValueError(f"weight: expected shape (R, K) with R = {width} and K >= 1, got {tuple(weight.shape)}.")
    if bias is not None:
        expect_floating("bias", bias)
        expect_shape("bias", bias, (width,), "(R,)")
    return weight.shape[1]


def run_causal_conv1d(
    backend: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    history: Tensor | None,
    starts: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    has_initial: Tensor | None = None,
) -> Tensor:
    """Outputs on ``backend``, through the registered op where autograd, a transform or a tracer must see it.

    Args:
        backend: ``"shifted"`` or ``"triton"``; the second alone takes packed sequences.
        x: (B, L, R) without pads, or the tokens (T, R) of N packed sequences.
        weight: (R, K).
        bias: (R,).
        history: (B, K - 1, R) or (N, K - 1, R) in x's dtype; zeros when None.
        starts: (B, L) bool.
        cu_seqlens: (N + 1) int32, if packed.
        has_initial: (N) bool, if packed: false where the history counts as zeros and is not read.
    """
    arguments = (x, weight, bias, history, starts, cu_seqlens, has_initial)
    if compiles_as_step(x):
        return causal_conv1d_forward(x, weight, bias, history, starts)
    if needs_registered_op(x, weight, bias, history):
        return _causal_conv1d(*arguments, backend)
    return _forward(*arguments, backend)


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    history: Tensor | None,
    starts: Tensor | None,
    cu_seqlens: Tensor | None,
    has_initial: Tensor | None,
    backend: str,
) -> Tensor:
    if backend == "shifted":
        return causal_conv1d_forward(x, weight, bias, history, starts)
    from recurrent_gemma.modeling.ops.causal_conv1d.triton import causal_conv1d_triton_forward

    return causal_conv1d_triton_forward(x, weight, bias, history, starts, cu_seqlens, has_initial)


_causal_conv1d = torch.library.custom_op("recurrent_gemma::causal_conv1d", _forward, mutates_args=())


@_causal_conv1d.register_fake
def _(x, weight, bias, history, starts, cu_seqlens, has_initial, backend):
    return x.new_empty(x.shape)


@torch.library.custom_op("recurrent_gemma::causal_conv1d_backward", mutates_args=())
def _causal_conv1d_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    history: Tensor | None,
    starts: Tensor | None,
    cu_seqlens: Tensor | None,
    has_initial: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if backend == "shifted":
        return causal_conv1d_backward(grad, x, weight, history, starts)
    from recurrent_gemma.modeling.ops.causal_conv1d.triton import causal_conv1d_triton_backward

    return causal_conv1d_triton_backward(grad, x, weight, history, starts, cu_seqlens, has_initial)


@_causal_conv1d_backward.register_fake
def _(grad, x, weight, history, starts, cu_seqlens, has_initial, backend):
    rows = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    grad_history = x.new_empty((rows, weight.shape[1] - 1, x.shape[-1]))
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[:1]), grad_history


def _setup_context(ctx, inputs, output):
    x, weight, bias, history, *markers, ctx.backend = inputs
    ctx.save_for_backward(x, weight, history, *markers)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.has_history = history is not None


def _backward(ctx, grad):
    grad_x, grad_weight, grad_bias, grad_history = _causal_conv1d_backward(grad, *ctx.saved_tensors, ctx.backend)
    grad_bias = None if ctx.bias_dtype is None else grad_bias.to(ctx.bias_dtype)
    return grad_x, grad_weight, grad_bias, grad_history if ctx.has_history else None, None, None, None, None


_causal_conv1d.register_autograd(_backward, setup_context=_setup_context)
