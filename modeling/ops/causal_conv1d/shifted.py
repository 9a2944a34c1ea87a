"""Causal depthwise convolution as K shifted multiply-adds in plain torch, for rows without pads on any device."""

import torch
from torch import Tensor


def causal_conv1d_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, starts: Tensor | None, out_dtype: torch.dtype
) -> Tensor:
    """Outputs (B, L, R) of x (B, K - 1 + L, R), whose first K - 1 columns are the history.

    Args:
        starts: (B, L) bool, or None if no document starts here.
    """
    taps = weight.shape[1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    length = x.shape[1] - taps + 1
    weight = weight.to(dtype)
    if length == 1:
        return _one_step(x.to(dtype), weight, bias, starts).to(out_dtype)
    y = x[:, taps - 1 :].to(dtype) * weight[:, -1]
    if bias is not None:
        y.add_(bias.to(dtype))
    for back, hidden in zip(range(1, taps), _hidden_taps(starts, taps), strict=True):
        shifted = x[:, taps - 1 - back :][:, :length]
        if hidden is not None:
            shifted = shifted.masked_fill(hidden, 0.0)
        y.addcmul_(shifted.to(dtype), weight[:, -1 - back])
    return y.to(out_dtype)


def causal_conv1d_backward(
    grad: Tensor, x: Tensor, weight: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (history included), weight and bias. Shapes as in the forward."""
    taps = weight.shape[1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    length = x.shape[1] - taps + 1
    grad = grad.to(dtype)
    weight_dtype, weight = weight.dtype, weight.to(dtype)
    grad_x = torch.zeros(x.shape, dtype=dtype, device=x.device)
    grad_weight = torch.empty_like(weight)
    for back, hidden in zip(range(taps), (None, *_hidden_taps(starts, taps)), strict=True):
        visible = grad if hidden is None else grad.masked_fill(hidden, 0.0)
        span = slice(taps - 1 - back, taps - 1 - back + length)
        grad_x[:, span].addcmul_(visible, weight[:, -1 - back])
        shifted = x[:, span] if hidden is None else x[:, span].masked_fill(hidden, 0.0)
        grad_weight[:, -1 - back] = (visible * shifted).sum(dim=(0, 1))
    return grad_x.to(x.dtype), grad_weight.to(weight_dtype), grad.sum(dim=(0, 1)).to(weight_dtype)


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
