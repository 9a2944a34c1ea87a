"""The norm as its equation. Differentiable by autograd, any number of times."""

import torch
from torch import Tensor


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Output (..., D) in x's dtype."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    wide = x.to(dtype)
    inverse_rms = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (wide * inverse_rms * (1.0 + weight.to(dtype))).to(x.dtype)
