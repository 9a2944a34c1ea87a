"""Causal depthwise convolution as K shifted multiply-adds in plain torch, for rows without pads on any device."""

import torch
from torch import Tensor


def causal_conv1d_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, history: Tensor | None, starts: Tensor | None
) -> Tensor:
    """Outputs (B, L, R) in x's dtype.

    Args:
        x: (B, L, R).
        history: (B, K - 1, R) in x's dtype.
        starts: (B, L) bool, or None if no document starts here.
    """
    length, taps = x.shape[1], weight.shape[1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    weight = weight.to(dtype)
    if length == 1:
        return _one_step(_extended(x, history, taps).to(dtype), weight, bias, starts).to(x.dtype)
    y = x.to(dtype) * weight[:, -1]
    if bias is not None:
        y.add_(bias.to(dtype))
    extended = _extended(x, history, taps)
    for back, hidden in zip(range(1, taps), _hidden_taps(starts, taps), strict=True):
        shifted = extended[:, taps - 1 - back :][:, :length]
        if hidden is not None:
            shifted = shifted.masked_fill(hidden, 0.0)
        y.addcmul_(shifted.to(dtype), weight[:, -1 - back])
    return y.to(x.dtype)


def causal_conv1d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, history: Tensor | None, starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and history. Arguments as in the forward."""
    length, taps = x.shape[1], weight.shape[1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    grad = grad.to(dtype)
    weight_dtype, weight = weight.dtype, weight.to(dtype)
    extended = _extended(x, history, taps)
    grad_extended = torch.zeros(extended.shape, dtype=dtype, device=x.device)
    grad_weight = torch.empty_like(weight)
    for back, hidden in zip(range(taps), (None, *_hidden_taps(starts, taps)), strict=True):
        visible = grad if hidden is None else grad.masked_fill(hidden, 0.0)
        span = slice(taps - 1 - back, taps - 1 - back + length)
        grad_extended[:, span].addcmul_(visible, weight[:, -1 - back])
        shifted = extended[:, span] if hidden is None else extended[:, span].masked_fill(hidden, 0.0)
        grad_weight[:, -1 - back] = (visible * shifted).sum(dim=(0, 1))
    grad_bias = grad.sum(dim=(0, 1)).to(weight_dtype)
    # Copies: a registered op's results must not share memory.
    grad_history = grad_extended[:, : taps - 1].to(x.dtype, copy=True)
    grad_x = grad_extended[:, taps - 1 :].to(x.dtype, copy=True)
    return grad_x, grad_weight.to(weight_dtype), grad_bias, grad_history


def _extended(x: Tensor, history: Tensor | None, taps: int) -> Tensor:
    """(B, K - 1 + L, R), the history before x."""
    if history is None:
        history = x.new_zeros(x.shape[0], taps - 1, x.shape[2])
    return torch.cat((history, x), dim=1)


def _one_step(x: Tensor, weight: Tensor, bias: Tensor | None, starts: Tensor | None) -> Tensor:
    """The same for a single step (B, K, R), all of whose taps a start hides but the last."""
    products = x * weight.t()
    if starts is not None:
        products[:, :-1].masked_fill_(starts[..., None], 0.0)
    y = products.sum(dim=1, keepdim=True)
    return y if bias is None else y.add_(bias)


def _hidden_taps(starts: Tensor | None, taps: int) -> list[Tensor | None]:
    """For each tap 1, 2, ... K - 1 steps back: where (B, L, 1) a document start hides it; None if nowhere."""
    if starts is None:
        return [None] * (taps - 1)
    hidden = starts
    result: list[Tensor | None] = []
    for back in range(1, taps):
        if back > 1:
            hidden = hidden.clone()
            hidden[:, back - 1 :] |= starts[:, : max(0, starts.shape[1] - back + 1)]
        result.append(hidden[..., None])
    return result
