"""Local attention in O(L W) time and memory: blocks of queries against the keys their windows reach, with torch's SDPA.

Rows hold no pads between their tokens here (``api.py`` brings valid tokens together first), so the window is a band.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def local_attention_blocked(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    past: int,
    window: int,
    scaling: float,
    past_length: Tensor | None,
    documents: Tensor | None,
    dropout: float,
) -> Tensor:
    """Output (B, H, L, D) in query's dtype.

    Args:
        query: (B, H, L, D).
        key, value: (B, G, P + L, D), the P past columns first.
        past: P.
        past_length: (B,), how many of the past columns, counted from the right, are keys; None: all.
        documents: (B, L) int, 0 for the document that the past belongs to, growing; None: one document.
    """
    length = query.shape[2]
    rows = _block_rows(window)
    keys, values = (_split(t, past, rows) for t in (key, value))
    reach = math.ceil(window / rows)
    bands: dict[tuple[int, int, torch.dtype], Tensor] = {}  # most blocks see the same band
    outputs, begin = [], 0
    while begin < length:
        end = min(length, begin + rows)
        if begin == 0 and past == 0 and documents is None:
            # While everything lies in the window, plain causal attention is the same and needs no mask.
            end = length if length <= window + 1 else max(end, (window + 1) // rows * rows)
        first = begin // rows - reach
        chunks = slice(max(0, first) + 1, math.ceil(end / rows) + 1)
        column = max(0, first) * rows
        if first < 0 and past:
            chunks, column = slice(0, chunks.stop), -past
        mask = _mask(begin, end, column, window, past_length, documents, query, bands)
        outputs.append(
            _attend(
                query[:, :, begin:end],
                torch.cat(keys[chunks], dim=2),
                torch.cat(values[chunks], dim=2),
                mask=mask,
                causal=mask is None and end - begin > 1,
                scaling=scaling,
                dropout=dropout,
            )
        )
        begin = end
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def _block_rows(window: int) -> int:
    """Queries per block: large enough for the matrix products, small against the window they drag along."""
    return max(64, min(512, window // 8))


def _split(tensor: Tensor, past: int, rows: int) -> list[Tensor]:
    """Past, then blocks of ``rows``. Cut once, so that the gradients of a long sequence are gathered once as well."""
    return [tensor[:, :, :past], *tensor[:, :, past:].split(rows, dim=2)]


def _mask(
    begin: int,
    end: int,
    column: int,
    window: int,
    past_length: Tensor | None,
    documents: Tensor | None,
    query: Tensor,
    bands: dict[tuple[int, int, torch.dtype], Tensor],
) -> Tensor | None:
    """Which keys [column, end) the queries [begin, end) see, (rows, keys) or (B, 1, rows, keys); None: causal or all.

    Token t of this call is number t; past columns have negative numbers. Where only the band matters, the mask is added
    to the logits: of a boolean one, torch would make that anew for every block.
    """
    ragged_past = past_length is not None and column < 0
    plain = documents is None and not ragged_past
    if plain and end - 1 - column <= window and begin in (column, end - 1):
        return None
    key = (end - begin, begin - column, query.dtype if plain else torch.bool)
    if key not in bands:
        rows = torch.arange(begin - column, end - column, device=query.device)[:, None]
        columns = torch.arange(end - column, device=query.device)[None, :]
        band = (columns <= rows) & (rows - columns <= window)
        bands[key] = query.new_zeros(band.shape).masked_fill_(~band, -math.inf) if plain else band
    mask = bands[key]
    if ragged_past and past_length is not None:
        live = torch.arange(column, end, device=query.device) >= -past_length[:, None]
        mask = mask & live[:, None, None, :]
    if documents is not None:
        before = documents.new_zeros(documents.shape[0], max(0, -column))
        key_documents = torch.cat((before, documents[:, max(0, column) : end]), dim=1)
        mask = mask & (documents[:, begin:end, None] == key_documents[:, None, :])[:, None]
    return mask


def _attend(
    query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, causal: bool, scaling: float, dropout: float
) -> Tensor:
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    if length == 1 and heads > groups:
        # One token: the query heads that share a key head are rows of one product.
        folded = query.reshape(batch, groups, heads // groups, width)
        if mask is not None and mask.ndim == 2:
            mask = mask.expand(heads // groups, -1)
        elif mask is not None:
            mask = mask.expand(-1, -1, heads // groups, -1)
        output = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
        return output.reshape(batch, heads, length, width)
    if groups == 1:
        key, value = key.expand(-1, heads, -1, -1), value.expand(-1, heads, -1, -1)
    elif groups < heads:
        key, value = (t.repeat_interleave(heads // groups, dim=1) for t in (key, value))
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scaling
    )
