"""Local attention in O(L W) time and memory as one fused kernel, of ``torch.nn.attention.flex_attention``.

Rows hold no pads between their tokens here (``api.py`` brings valid tokens together first). So the keys that a query
sees lie side by side, in a run that never begins earlier than that of the query before it: two numbers say all about a
query, and the blocks that a kernel has to visit follow from those of the first and the last query of a block.

Source: https://arxiv.org/abs/2412.05496.
"""

import functools
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

# Queries and keys per block. Whole blocks, and two of them at least, spare the kernel the checks of borders, and the
# compiler the cases of one block, which it would compile by themselves.
_BLOCK = 128
_MIN_BLOCKS = 2


def local_attention_flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    past: int,
    window: int,
    scaling: float,
    past_length: Tensor | None,
    documents: Tensor | None,
) -> Tensor:
    """Output (B, H, L, D) in query's dtype.

    On CUDA devices D must be 16 or more. On CPU the score matrix is made as a whole, which is for tests.

    Args:
        query: (B, H, L, D).
        key, value: (B, G, P + L, D), the P past columns first.
        past: P.
        past_length: (B,), how many of the past columns, counted from the right, are keys; None: all.
        documents: (B, L) int, 0 for the document that the past belongs to, growing; None: one document.

    Raises:
        ValueError: A gradient is wanted on CPU, where torch has none.
    """
    length = query.shape[2]
    if not torch.is_grad_enabled():
        # torch's own check goes by requires_grad alone.
        query, key, value = query.detach(), key.detach(), value.detach()
    _expect_backward(query, key, value)
    first, last = key_bounds(query.shape[0], length, past, window, past_length, documents, query.device)
    query, key, value = (_pad(t, dim=2) for t in (query, key, value))
    # What stands behind the last query repeats it, since a query without keys would be a case of its own.
    first, last = (_pad(t, dim=1, repeat=True) for t in (first, last))
    block_mask = block_mask_of_bounds(first, last, key.shape[2])
    attend = _attend
    if not torch.compiler.is_compiling():
        sizes = (query.shape[1], key.shape[1], query.shape[3])
        attend = _compiled(query.device.type, query.dtype, torch.is_grad_enabled(), *sizes)
    output: Tensor = attend(query, key, value, block_mask, scaling)
    return output[:, :, :length]


def _expect_backward(*tensors: Tensor) -> None:
    """Raise ValueError where a gradient is wanted that torch does not have."""
    if any(t.device.type == "cpu" and t.requires_grad for t in tensors):
        raise ValueError(
            "query, key, value: expected tensors without requires_grad on CPU, where torch's flex_attention has no "
            'backward, got some that require it; use impl="blocked" (attn_implementation="sdpa"), or torch.no_grad().'
        )


def key_bounds(
    batch: int,
    length: int,
    past: int,
    window: int,
    past_length: Tensor | None,
    documents: Tensor | None,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """The first and the last key column that each query sees, (B, L) int32 each; neither ever falls along a row."""
    last = torch.arange(past, past + length, device=device, dtype=torch.int32).expand(batch, length)
    first = (last - window).clamp_min(0)
    if past_length is not None:
        live = (past - past_length).clamp_min(0).to(torch.int32)
        first = torch.maximum(first, live[:, None])
    if documents is not None:
        # A document other than the past's begins where the number of documents grows.
        before = F.pad(documents[:, :-1], (1, 0))
        begins = torch.where(documents > before, last, 0).cummax(dim=1).values
        first = torch.maximum(first, begins.to(torch.int32))
    return first, last.contiguous()


def block_mask_of_bounds(first: Tensor, last: Tensor, keys: int) -> BlockMask:
    """The mask of queries that see the keys from ``first`` to ``last``, (B, L) int32 each, of ``keys`` keys.

    L and ``keys`` are multiples of the block size. ``create_block_mask`` would look at every pair of query and key.
    """

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (first[batch, query] <= key) & (key <= last[batch, query])

    # Along a row neither bound falls, so a block's first and last queries have the outermost ones.
    lowest, highest_first = first[:, ::_BLOCK], first[:, _BLOCK - 1 :: _BLOCK]
    lowest_last, highest = last[:, ::_BLOCK], last[:, _BLOCK - 1 :: _BLOCK]
    begin, end = lowest // _BLOCK, highest // _BLOCK + 1  # blocks of which some query sees something
    full_begin = (highest_first + _BLOCK - 1) // _BLOCK  # blocks that every query sees as a whole
    full_end = torch.maximum((lowest_last + 1) // _BLOCK, full_begin)
    full_count = full_end - full_begin
    # Blocks before the full ones, then those behind them.
    column = torch.arange(keys // _BLOCK, device=first.device, dtype=torch.int32)
    partial = column + begin[..., None]
    partial = torch.where(partial < full_begin[..., None], partial, partial + full_count[..., None])
    full = column + full_begin[..., None]
    limit = keys // _BLOCK - 1
    return BlockMask.from_kv_blocks(
        (end - begin - full_count)[:, None],
        partial.clamp_max(limit)[:, None],
        full_count[:, None],
        full.clamp_max(limit)[:, None],
        BLOCK_SIZE=_BLOCK,
        mask_mod=visible,
        seq_lengths=(first.shape[1], keys),
    )


def _pad(tensor: Tensor, *, dim: int, repeat: bool = False) -> Tensor:
    """Zeros, or the last entry again, behind ``tensor`` until its dimension ``dim`` is made of whole blocks."""
    length = tensor.shape[dim]
    missing = max(_MIN_BLOCKS, -(-length // _BLOCK)) * _BLOCK - length
    if missing == 0:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    padding = tensor.narrow(dim, length - 1, 1).expand(shape) if repeat else tensor.new_zeros(shape)
    return torch.cat((tensor, padding), dim=dim)


def _attend(query: Tensor, key: Tensor, value: Tensor, block_mask: BlockMask, scaling: float) -> Any:
    return flex_attention(query, key, value, block_mask=block_mask, scale=scaling, enable_gqa=True)


@functools.cache
def _compiled(device: str, dtype: torch.dtype, gradient: bool, *sizes: int) -> Callable[..., Any]:
    """``_attend``, compiled for one kind of tensors; ``sizes`` are H, G and D. Lengths are symbols from the first one.

    Uncompiled, torch would make the scores of every pair and say so in a warning: with ``fullgraph`` a limit of
    recompilations that is reached raises. Torch counts them by code object, so each kind has its own.
    """
    attend = types.FunctionType(_attend.__code__.replace(), _attend.__globals__)
    # On CPU there is nothing that a compiler could make of a dense reference.
    backend = "eager" if device == "cpu" else "inductor"
    return torch.compile(attend, fullgraph=True, dynamic=True, backend=backend)
