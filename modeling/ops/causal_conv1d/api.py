"""Causal depthwise convolution over time that knows documents, pads and a history."""

import torch
from torch import Tensor

from recurrent_gemma.modeling.ops.causal_conv1d.reference import causal_conv1d_reference
from recurrent_gemma.modeling.ops.causal_conv1d.shifted import causal_conv1d_backward, causal_conv1d_forward
from recurrent_gemma.modeling.ops.dispatch import (
    choose_backend,
    compiles_as_step,
    expect_floating,
    expect_markers,
    expect_sequence,
    expect_shape,
    holds_on_cpu,
    needs_registered_op,
    refuse_forward_mode,
)
from recurrent_gemma.modeling.ops.ragged import gather_columns, inverse_order, valid_first


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    history: Tensor | None = None,
    *,
    starts: Tensor | None = None,
    valid: Tensor | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """``y_t = bias + sum_k weight[:, k] x_{t - (K - 1) + k}``, each channel by itself, over the valid tokens of a row.

    A token sees no input from before its document's start, and pads do not exist: they neither enter the window nor
    shift it. Accumulated in fp32 (fp64 for fp64 inputs). Source: ``Conv1D`` in ``recurrentgemma/jax/layers.py``.

    Args:
        x: (B, L, R), any floating dtype; B, L, R >= 1.
        weight: (R, K), K >= 1; ``weight[:, -1]`` multiplies the current token.
        bias: (R,).
        history: (B, K - 1, R), the last valid inputs before x, the newest last; zeros when None.
        starts: (B, L) bool, true at the first token of a document.
        valid: (B, L) bool, false at pads; all valid when None. A start at a pad is ignored.
        impl: ``"shifted"`` (default) or ``"reference"``; forces a backend.

    Returns:
        y (B, L, R) in x's dtype, 0 at pads, and the new history (B, K - 1, R) in x's dtype: the last valid inputs,
        zeros where they belong to an earlier document than the last token's.

    Raises:
        TypeError: A tensor has the wrong kind of dtype.
        ValueError: A shape disagrees with x's, a dimension is empty, or ``impl`` does not exist.
        NotImplementedError: Forward-mode or second derivatives are asked for.
    """
    backend = choose_backend("causal_conv1d", impl, ("shifted", "reference"), "shifted")
    expect_sequence("x", x)
    batch, length, width = x.shape
    expect_floating("weight", weight)
    if weight.ndim != 2 or weight.shape[0] != width or weight.shape[1] < 1:
        raise ValueError(f"weight: expected shape (R, K) with R = {width} and K >= 1, got {tuple(weight.shape)}.")
    taps = weight.shape[1]
    if bias is not None:
        expect_floating("bias", bias)
        expect_shape("bias", bias, (width,), "(R,)")
    if history is not None:
        expect_floating("history", history)
        expect_shape("history", history, (batch, taps - 1, width), "(B, K - 1, R)")
    expect_markers("starts", starts, batch, length)
    expect_markers("valid", valid, batch, length)
    if starts is not None and valid is not None:
        starts = starts & valid

    if backend == "reference":
        y, history = causal_conv1d_reference(x, weight, bias, history, starts, valid)
        return y.to(x.dtype), history
    refuse_forward_mode("causal_conv1d", x, weight, bias, history)
    if starts is not None and history is None and holds_on_cpu(~starts[:, 1:]):
        starts = None  # nothing stands before the first token
    if history is None:
        history = x.new_zeros(batch, taps - 1, width)
    if valid is None:
        tokens, order = x, None
    else:
        order = valid_first(valid)
        tokens = gather_columns(x, order)
        starts = None if starts is None else starts.gather(1, order)
    extended = torch.cat((history.to(x.dtype), tokens), dim=1)
    registered = needs_registered_op(x, weight, bias, history) and not compiles_as_step(x)
    run = _causal_conv1d if registered else causal_conv1d_forward
    y = run(extended, weight, bias, starts, x.dtype)
    if valid is not None and order is not None:
        y = gather_columns(y, inverse_order(order)).masked_fill(~valid[..., None], 0.0)
    return y, _last_inputs(extended, taps, starts, valid)


def conv_history(x: Tensor, history: Tensor, *, starts: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
    """The history that ``causal_conv1d`` returns, without its outputs.

    Args:
        x: (B, L, R) inputs; L may be 0.
        history: (B, K - 1, R), the last valid inputs before x, in x's dtype.
        starts, valid: (B, L) bool, as there.

    Returns:
        (B, K - 1, R).
    """
    if starts is not None and valid is not None:
        starts = starts & valid
    if valid is not None:
        order = valid_first(valid)
        x = gather_columns(x, order)
        starts = None if starts is None else starts.gather(1, order)
    return _last_inputs(torch.cat((history, x), dim=1), history.shape[1] + 1, starts, valid)


def _last_inputs(extended: Tensor, taps: int, starts: Tensor | None, valid: Tensor | None) -> Tensor:
    """The last K - 1 valid columns of (B, K - 1 + L, R), zeroed before the last document's start."""
    batch, columns, _ = extended.shape
    length = columns - taps + 1
    if valid is None:
        history = extended[:, length:].clone()
        if starts is None:
            return history
        begin = torch.full((batch, 1), length, device=extended.device)
    else:
        begin = valid.sum(dim=1, keepdim=True)
        history = gather_columns(extended, begin + torch.arange(taps - 1, device=extended.device))
        if starts is None:
            return history
    # Indices of tokens; those of the history before them are negative.
    column = begin + torch.arange(1 - taps, 0, device=extended.device)
    tokens = torch.arange(length, device=extended.device).expand_as(starts)
    last_start = tokens.masked_fill(~starts, 1 - taps).amax(dim=1, keepdim=True)
    return history.masked_fill((column < last_start)[..., None], 0.0)


@torch.library.custom_op("recurrent_gemma::causal_conv1d", mutates_args=())
def _causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, starts: Tensor | None, out_dtype: torch.dtype
) -> Tensor:
    return causal_conv1d_forward(x, weight, bias, starts, out_dtype)


@_causal_conv1d.register_fake
def _(x, weight, bias, starts, out_dtype):
    return x.new_empty((x.shape[0], x.shape[1] - weight.shape[1] + 1, x.shape[2]), dtype=out_dtype)


@torch.library.custom_op("recurrent_gemma::causal_conv1d_backward", mutates_args=())
def _causal_conv1d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return causal_conv1d_backward(grad, x, weight, starts)


@_causal_conv1d_backward.register_fake
def _(grad, x, weight, starts):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[:1])


def _setup_context(ctx, inputs, output):
    x, weight, bias, starts, _ = inputs
    ctx.save_for_backward(x, weight, starts)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx, grad):
    grad_x, grad_weight, grad_bias = _causal_conv1d_backward(grad, *ctx.saved_tensors)
    return grad_x, grad_weight, None if ctx.bias_dtype is None else grad_bias.to(ctx.bias_dtype), None, None


_causal_conv1d.register_autograd(_backward, setup_context=_setup_context)
