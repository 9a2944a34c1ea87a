"""Two-pass chunked scan in plain torch, in place, for blocks of time that stay in cache.

Inside each chunk the recurrence runs for all chunks at once; then the state is carried from chunk to chunk. Products of
``a`` are only ever multiplied, never divided by, so ``a = 0`` and underflow are exact.
"""

import itertools

import torch
from torch import Tensor

# Bytes of one (B, T, R) buffer of a time block. A block's handful of buffers should stay in the last-level cache.
_BLOCK_BYTES = 2 << 20


def block_length(batch: int, width: int, dtype: torch.dtype) -> int:
    """Time steps T of a block, a multiple of 32, for buffers of shape (batch, T, width)."""
    steps = _BLOCK_BYTES // max(1, batch * width * dtype.itemsize)
    return max(32, min(1024, steps // 32 * 32))


def scan_block_(a: Tensor, x: Tensor, carry: Tensor, *, reverse: bool = False) -> Tensor:
    """h_t = a_t h_{t-1} + x_t over one block, in place.

    Args:
        a: (B, T, R). Overwritten with the products of a inside each chunk.
        x: (B, T, R), same dtype. Overwritten with h.
        carry: (B, R), the state before the block (after it, if reverse).
        reverse: Run from the last step to the first: h_t = a_t h_{t+1} + x_t.

    Returns:
        (B, R), a new tensor: the state after the block's last step (first step, if reverse).
    """
    steps = x.shape[1]
    chunk = 32 if steps > 256 else 16
    whole = steps - steps % chunk
    parts = [(0, whole, chunk), (whole, steps, steps - whole)]
    for begin, end, size in reversed(parts) if reverse else parts:
        if begin == end:
            continue
        a_chunks = a[:, begin:end].unflatten(1, (-1, size))
        h_chunks = x[:, begin:end].unflatten(1, (-1, size))
        order = range(size - 1, -1, -1) if reverse else range(size)
        for previous, current in itertools.pairwise(order):
            h_chunks[:, :, current].addcmul_(a_chunks[:, :, current], h_chunks[:, :, previous])
            a_chunks[:, :, current].mul_(a_chunks[:, :, previous])
        count = h_chunks.shape[1]
        for index in range(count - 1, -1, -1) if reverse else range(count):
            h_chunks[:, index].addcmul_(a_chunks[:, index], carry[:, None])
            carry = h_chunks[:, index, order[-1]]
    return carry.clone()
