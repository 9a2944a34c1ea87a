"""The product of a single row, which is bound by reading the weight."""

import torch
from torch import Tensor


def linear_row_in_blocks(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The weight in as many blocks of rows as there are threads: BLAS gives one row to one thread, a batch to all.

    The number of threads has to divide D_out.
    """
    width_out, width_in = weight.shape
    blocks = torch.get_num_threads()
    row = x.reshape(1, 1, width_in).expand(blocks, 1, width_in)
    columns = weight.reshape(blocks, -1, width_in).transpose(1, 2)
    y = torch.bmm(row, columns) if bias is None else torch.baddbmm(bias.reshape(blocks, 1, -1), row, columns)
    return y.reshape(*x.shape[:-1], width_out)


def linear_row_reduced(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As a sum over products, from which a compiler makes one loop together with what comes before and after."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    y = (weight.to(dtype) * x.reshape(1, -1).to(dtype)).sum(dim=1)
    if bias is not None:
        y = y + bias.to(dtype)
    return y.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])


def block_diagonal_row_reduced(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``block_diagonal_linear`` in the same way."""
    heads, width, _ = weight.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    y = (weight.to(dtype) * x.reshape(heads, width, 1).to(dtype)).sum(dim=1) + bias.to(dtype)
    return y.to(x.dtype).reshape(x.shape)
