"""Local attention as its definition: one dense mask, softmax in fp32. Gives the weights; quadratic by design.

Source: ``LocalAttentionBlock`` in ``recurrentgemma/jax/modules.py``.
"""

import torch
from torch import Tensor


def visible_keys(
    window: int,
    batch: int,
    length: int,
    past: int,
    past_length: Tensor | None,
    starts: Tensor | None,
    valid: Tensor | None,
    device: torch.device,
) -> Tensor:
    """(B, L, P + L) bool: which keys each query attends. Pads attend nothing."""
    ones = torch.ones(batch, length, dtype=torch.bool, device=device)
    valid = ones if valid is None else valid
    document = torch.zeros(batch, length, dtype=torch.long, device=device) if starts is None else starts.cumsum(dim=1)
    order = valid.cumsum(dim=1) - 1  # place of each token among the row's valid tokens
    slots = torch.arange(past, device=device).expand(batch, past)
    live = slots >= past - (torch.tensor(past, device=device) if past_length is None else past_length[:, None])
    key_valid = torch.cat((live, valid), dim=1)
    key_document = torch.cat((torch.zeros_like(slots), document), dim=1)
    key_order = torch.cat((slots - past, order), dim=1)
    distance = order[:, :, None] - key_order[:, None, :]
    same_document = document[:, :, None] == key_document[:, None, :]
    return valid[:, :, None] & key_valid[:, None, :] & same_document & (distance >= 0) & (distance <= window)


def local_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    past: int,
    window: int,
    scaling: float,
    past_length: Tensor | None,
    starts: Tensor | None,
    valid: Tensor | None,
    dropout: float,
) -> tuple[Tensor, Tensor]:
    """Output (B, H, L, D) and weights (B, H, L, P + L), in query's dtype; zero at pads. key and value hold the past."""
    batch, heads, length, _ = query.shape
    dtype = torch.promote_types(query.dtype, torch.float32)
    mask = visible_keys(window, batch, length, past, past_length, starts, valid, query.device)[:, None]
    key, value = (t.repeat_interleave(heads // t.shape[1], dim=1) for t in (key, value))
    scores = (query @ key.transpose(-1, -2)).to(dtype) * scaling
    weights = torch.softmax(scores.masked_fill(~mask, torch.finfo(dtype).min), dim=-1)
    weights = weights.masked_fill(~mask, 0.0).to(query.dtype)
    weights = torch.dropout(weights, dropout, train=dropout > 0)
    return weights @ value, weights
