"""The product in fp32 of what is stored in half precision."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Elements of the weight that are held in fp32 at a time.
_BLOCK_ELEMENTS = 1 << 24


def linear_widened(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Widens the weight block by block for this one call; each result is rounded once, at its end."""
    wide = x.float()
    rows = max(1, _BLOCK_ELEMENTS // weight.shape[1])
    if weight.shape[0] <= rows:
        return F.linear(wide, weight.float(), None if bias is None else bias.float()).to(x.dtype)
    y = torch.empty(*x.shape[:-1], weight.shape[0], dtype=x.dtype, device=x.device)
    for begin in range(0, weight.shape[0], rows):
        span = slice(begin, begin + rows)
        y[..., span] = F.linear(wide, weight[span].float(), None if bias is None else bias[span].float())
    return y


def block_diagonal_widened(bias: Tensor, blocks: Tensor, weight: Tensor) -> Tensor:
    """``torch.baddbmm`` of bias (H, 1, D), blocks (H, rows, D) and weight (H, D, D)."""
    return torch.baddbmm(bias.float(), blocks.float(), weight.float()).to(blocks.dtype)
