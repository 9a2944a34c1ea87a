"""Pads anywhere in a row: bring the valid tokens together, work on them, put the results back."""

import torch
from torch import Tensor


def valid_first(valid: Tensor) -> Tensor:
    """Column order that moves each row's valid tokens to the front, in their order, and its pads behind them.

    Args:
        valid: (B, L) bool.

    Returns:
        (B, L) int64: ``gather_columns(x, order)`` is x with the valid tokens first.
    """
    return torch.sort(valid, dim=1, descending=True, stable=True).indices


def gather_columns(x: Tensor, order: Tensor, dim: int = 1) -> Tensor:
    """Columns of ``x`` (its dimension ``dim``; dimension 0 is the batch) in the order (B, L) of each row."""
    shape = [1] * x.ndim
    shape[0], shape[dim] = order.shape
    sizes = list(x.shape)
    sizes[dim] = order.shape[1]
    return x.gather(dim, order.view(shape).expand(sizes))


def inverse_order(order: Tensor) -> Tensor:
    """The order that undoes ``order``."""
    positions = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, positions)
