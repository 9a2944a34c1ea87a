"""The norm with one buffer of x's size where the equation makes three, and a backward in blocks that stay in cache.

Fresh buffers cost more on CPU than what is computed into them, and the equation's own are kept for its backward. Here
the backward has x and a number for each row.
"""

from typing import Any

import torch
from torch import Tensor

from recurrent_gemma.modeling.ops.double_backward import gradients_of_equation
from recurrent_gemma.modeling.ops.rms_norm.reference import rms_norm_reference

# Elements of a block of rows in the backward.
_BLOCK_ELEMENTS = 1 << 18


def rms_norm_forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Output (..., D) in x's dtype, and 1 / rms (..., 1) in the compute dtype."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    # One pass over x where squaring and averaging takes two.
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
    inverse_rms = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    y = torch.mul(x, inverse_rms).mul_(weight.to(dtype) + 1.0)
    return y.to(x.dtype), inverse_rms


class RMSNormFunction(torch.autograd.Function):
    """``rms_norm_forward`` with its derivative; where that is to be differentiated again, the equation's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, inverse_rms = rms_norm_forward(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse_rms)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        x, weight, inverse_rms = ctx.saved_tensors
        if torch.is_grad_enabled():
            grad_x, grad_weight = gradients_of_equation(
                lambda x, weight: rms_norm_reference(x, weight, ctx.eps), (x, weight), grad
            )
            return grad_x, grad_weight, None
        width, dtype = x.shape[-1], inverse_rms.dtype
        scale = weight.to(dtype) + 1.0
        grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        grad_weight = torch.zeros_like(scale)
        rows = max(1, _BLOCK_ELEMENTS // width) if x.device.type == "cpu" else max(1, x.numel() // width)
        blocks = (t.reshape(-1, t.shape[-1]).split(rows) for t in (grad, x, inverse_rms, grad_x))
        for grad_rows, x_rows, inverse, out in zip(*blocks, strict=True):
            normed = x_rows * inverse
            product = grad_rows * normed
            grad_weight += product.sum(dim=0)
            mean = product.mul_(scale).mean(dim=-1, keepdim=True)
            out.copy_(torch.mul(grad_rows, scale, out=product).sub_(normed.mul_(mean)).mul_(inverse))
        return grad_x, grad_weight.to(weight.dtype), None
