"""Local attention whose keys and values live in ring buffers of fixed address and shape.

A ring has W + 1 slots: the W newest tokens and one that is free for the next. So a single token is written where nobody
looks, attention runs over the ring as it lies there, and no window is copied.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from recurrent_gemma.modeling.ops.dispatch import expect_shape
from recurrent_gemma.modeling.ops.local_attention.api import local_attention
from recurrent_gemma.modeling.ops.ragged import gather_columns


def local_attention_ring_(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ring_key: Tensor,
    ring_value: Tensor,
    free: Tensor,
    *,
    past_length: Tensor,
    starts: Tensor | None = None,
    valid: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    impl: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``local_attention`` with W = slots - 1, for inference.

    Args:
        query: (B, H, L, D).
        key: (B, G, L, D).
        value: (B, G, L, D).
        ring_key: (B, G, W + 1, D). **Changed in place** at the free slot when L = 1, else not at all.
        ring_value: The same of values.
        free: (B,) int64, each row's free slot; the slot before it, cyclically, holds the newest token.
        past_length: (B,) int, tokens before these that belong to the document which goes on here.
        starts: As in ``local_attention``, and so are the others.
        valid: (B, L) bool.
        scaling: Factor of the scores.
        dropout: Probability of dropping an attention weight.
        impl: Forces a backend.

    Returns:
        Output (B, H, L, D) and the ring after these tokens: keys, values (the same tensors when L = 1), free slots.

    Raises:
        TypeError, ValueError: As in ``local_attention``; rings of other shapes than keys and values need.
    """
    slots = ring_key.shape[2]
    batch, groups, length, width = key.shape
    for name, ring in (("ring_key", ring_key), ("ring_value", ring_value)):
        expect_shape(name, ring, (batch, groups, slots, width), "(B, G, W + 1, D)")
    if length == 1 and impl != "reference":
        output = _one_token(query, key, value, ring_key, ring_value, free, past_length, starts, valid, scaling, dropout)
        step = torch.ones_like(free) if valid is None else valid[:, 0].to(free.dtype)
        return output, ring_key, ring_value, (free + step) % slots
    output, key, value = local_attention(
        query,
        key,
        value,
        ring_to_window(ring_key, free),
        ring_to_window(ring_value, free),
        window=slots - 1,
        past_length=past_length,
        starts=starts,
        valid=valid,
        scaling=scaling,
        dropout=dropout,
        impl=impl,
    )
    return output, window_to_ring(key, slots - 1), window_to_ring(value, slots - 1), torch.full_like(free, slots - 1)


def window_to_ring(columns: Tensor, window: int) -> Tensor:
    """A ring (B, G, W + 1, D) of at most W ``columns`` (B, G, P, D), the newest last; its free slot is W."""
    return F.pad(columns, (0, 0, window - columns.shape[2], 1))


def ring_to_window(ring: Tensor, free: Tensor) -> Tensor:
    """The W columns (B, G, W, D) of a ring, the newest last."""
    slots = ring.shape[2]
    order = (free[:, None] + torch.arange(1, slots, device=ring.device)) % slots
    return gather_columns(ring, order, dim=2)


def _one_token(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ring_key: Tensor,
    ring_value: Tensor,
    free: Tensor,
    past_length: Tensor,
    starts: Tensor | None,
    valid: Tensor | None,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    batch, groups, slots, width = ring_key.shape
    slot = free[:, None, None, None].expand(batch, groups, 1, width)
    ring_key.scatter_(2, slot, key.to(ring_key.dtype))
    ring_value.scatter_(2, slot, value.to(ring_value.dtype))
    # Age 0 is the token itself. A slot is seen if its token belongs to the same document.
    age = (free[:, None] - torch.arange(slots, device=free.device)) % slots
    reach = past_length if starts is None else past_length.masked_fill(starts[:, 0], 0)
    seen = (age <= reach[:, None])[:, None, None]
    heads = query.shape[1]
    # The query heads that share a key head are rows of one product.
    folded = query.reshape(batch, groups, heads // groups, width)
    output = F.scaled_dot_product_attention(
        folded,
        ring_key,
        ring_value,
        attn_mask=seen.expand(batch, 1, heads // groups, slots),
        dropout_p=dropout,
        scale=scaling,
    ).reshape(query.shape)
    return output if valid is None else output.masked_fill(~valid[:, None, :, None], 0.0)
