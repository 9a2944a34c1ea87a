"""Cross entropy of a soft-capped linear output as its definition: all logits at once, differentiable by autograd."""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_cross_entropy_reference(
    hidden: Tensor, weight: Tensor, labels: Tensor, soft_cap: float | None, ignore_index: int
) -> Tensor:
    """The sum (fp32; fp64 for fp64 inputs) over hidden (N, D), weight (V, D) and labels (N,)."""
    logits = F.linear(hidden, weight)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    return F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
