"""What the Triton kernels of several ops share: where a sequence's tokens lie, and whether a state precedes them."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor


def contiguous(tensor: Any) -> Any:
    """``tensor`` in the layout that the kernels address, or None."""
    return None if tensor is None else tensor.contiguous()


def sizes(x: Tensor, cu_seqlens: Tensor | None) -> tuple[int, int, int, int]:
    """Sequences, length of a row (0 if packed), tokens in all and width of x, which is (B, L, R) or packed (T, R)."""
    if cu_seqlens is None:
        batch, length, width = x.shape
        return batch, length, batch * length, width
    tokens, width = x.shape
    return cu_seqlens.shape[0] - 1, 0, tokens, width


@triton.jit
def sequence_span(cu_seqlens_ptr, sequence, sequences, length, tokens, is_packed: tl.constexpr):
    """First token of ``sequence`` and the one after its last, in rows of ``length`` tokens or between ``cu_seqlens``.

    The sequence after the last one is what ``cu_seqlens`` leaves of the tokens.
    """
    begin = sequence * length
    end = begin + length
    if is_packed:
        begin = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)
        end = tl.load(cu_seqlens_ptr + sequence + 1, mask=sequence < sequences, other=tokens).to(tl.int64)
    return begin, end


@triton.jit
def sequence_page(slots_ptr, has_initial_ptr, sequence, sequences, has_slots: tl.constexpr, has_flags: tl.constexpr):
    """The page of a sequence's state, 0 where it has none to keep, and whether that page is read."""
    page = sequence
    initial = sequence < sequences
    if has_slots:
        page = tl.load(slots_ptr + sequence, mask=initial, other=0).to(tl.int64)
        initial = page > 0
    if has_flags:
        initial = initial & (tl.load(has_initial_ptr + sequence, mask=initial, other=0) != 0)
    return page, initial
