"""Sequences of any lengths side by side in one row of tokens: their bounds, what precedes them, and states in pages.

A sequence's memory (a state, a history) can be laid as columns before its first token. Then packed sequences are an
ordinary row, and the host never has to know the lengths.
"""

import torch
from torch import Tensor

from recurrent_gemma.modeling.ops.dispatch import expect_shape
from recurrent_gemma.modeling.ops.ragged import gather_columns


def expect_cu_seqlens(cu_seqlens: Tensor, x: Tensor, *, covers_all: bool) -> None:
    """Raise unless ``cu_seqlens`` is int32 of shape (N + 1), from 0 on, never falling, and ends with the tokens of x.

    Values are looked at on CPU; on an accelerator they are asserted asynchronously where ``covers_all``.

    Args:
        covers_all: Whether the last value must be T; else it may be less.
    """
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dtype != torch.int32:
        got = cu_seqlens.dtype if isinstance(cu_seqlens, Tensor) else type(cu_seqlens).__name__
        raise TypeError(f"cu_seqlens: expected an int32 tensor, got {got}; convert it with .to(torch.int32).")
    if cu_seqlens.ndim != 1 or cu_seqlens.shape[0] < 2:
        raise ValueError(f"cu_seqlens: expected shape (N + 1) with N >= 1, got {tuple(cu_seqlens.shape)}.")
    expect_device("cu_seqlens", cu_seqlens, x)
    if torch.compiler.is_compiling() or (x.device.type != "cpu" and not covers_all):
        return
    tokens = x.shape[0]
    ends = cu_seqlens[-1] == tokens if covers_all else cu_seqlens[-1] <= tokens
    holds = (cu_seqlens[0] == 0) & (cu_seqlens.diff() >= 0).all() & ends
    expected = f"cu_seqlens: expected 0, then ends of sequences in order, the last {'' if covers_all else 'at most '}"
    expected += f"the number of tokens {tokens}"
    if x.device.type != "cpu":
        torch._assert_async(holds, f"{expected}.")
    elif not holds:
        raise ValueError(f"{expected}, got {cu_seqlens.tolist()}; sum up the lengths of the sequences.")


def expect_has_initial(has_initial: Tensor, sequences: int, x: Tensor) -> None:
    """Raise unless ``has_initial`` is bool of shape (N)."""
    if has_initial.dtype != torch.bool:
        raise TypeError(f"has_initial: expected a bool tensor, got {has_initial.dtype}; compare it with 0 first.")
    expect_shape("has_initial", has_initial, (sequences,), "(N)")
    expect_device("has_initial", has_initial, x)


def expect_slots(slots: Tensor, sequences: int, pages: int, x: Tensor) -> None:
    """Raise unless ``slots`` is int32 or int64 of shape (N), naming (looked at on CPU) pages, none twice but page 0."""
    if slots.dtype not in (torch.int32, torch.int64):
        raise TypeError(
            f"slots: expected an int32 or int64 tensor, got {slots.dtype}; convert it with .to(torch.int32)."
        )
    expect_shape("slots", slots, (sequences,), "(N)")
    expect_device("slots", slots, x)
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return
    live = slots[slots != 0]
    if ((slots < 0) | (slots >= pages)).any() or live.unique().numel() != live.numel():
        raise ValueError(
            f"slots: expected a page of state, 0 to {pages - 1}, for each sequence and no page but 0 twice, got "
            f"{slots.tolist()}; give padding page 0."
        )


def expect_device(name: str, tensor: Tensor, x: Tensor) -> None:
    """Raise ValueError unless ``tensor`` is where ``x`` is."""
    if tensor.device != x.device:
        raise ValueError(f"{name}: expected a tensor on {x.device} like x, got {tensor.device}; move it there.")


def expect_no_gradient(op: str, differentiable: str, *tensors: Tensor | None) -> None:
    """Raise ValueError if a gradient would be tracked, which an op that changes its state in place cannot give."""
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise ValueError(
            f"{op}: expected tensors without requires_grad, since it changes state in place; call it under "
            f"torch.no_grad(), or use {differentiable}."
        )


def sequence_of_tokens(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """(T,) int64: the sequence of each token; tokens after the last sequence count to it."""
    order = torch.arange(tokens, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    sequence = torch.searchsorted(cu_seqlens[1:].contiguous(), order, right=True)
    return sequence.clamp_(max=cu_seqlens.shape[0] - 2)


def one_token_each(cu_seqlens: Tensor, tokens: int) -> bool:
    """Whether every sequence has one token; False where looking would wait for a device or break a graph."""
    if cu_seqlens.device.type != "cpu" or torch.compiler.is_compiling() or cu_seqlens.shape[0] != tokens + 1:
        return False
    return torch.equal(cu_seqlens, torch.arange(tokens + 1, dtype=cu_seqlens.dtype))


def places_after_memory(sequence: Tensor, columns: int) -> Tensor:
    """(T,): where tokens stand in a row in which ``columns`` columns of memory precede each sequence."""
    return torch.arange(sequence.shape[0], device=sequence.device) + columns * (sequence + 1)


def row_with_memory(x: Tensor, memory: Tensor, cu_seqlens: Tensor, places: Tensor) -> Tensor:
    """(T + N M, R): tokens x (T, R) at ``places`` and before each sequence its memory, of (N, M, R)."""
    sequences, columns, width = memory.shape
    offsets = torch.arange(sequences, device=x.device) * columns + cu_seqlens[:-1]
    memory_places = offsets[:, None] + torch.arange(columns, device=x.device)
    row = x.new_empty(x.shape[0] + sequences * columns, width)
    index = torch.cat((places, memory_places.flatten()))
    return row.index_copy(0, index, torch.cat((x, memory.flatten(0, 1).to(x.dtype))))


def last_tokens(x: Tensor, memory: Tensor, cu_seqlens: Tensor) -> Tensor:
    """(N, M, R): the last M columns of each sequence's memory (N, M, R) and then its tokens, of x (T, R)."""
    sequences, columns, width = memory.shape
    bounds = cu_seqlens.to(torch.int64)[:, None]
    begin, end = bounds[:-1], bounds[1:]
    place = end - columns + torch.arange(columns, device=x.device)
    tokens = x.index_select(0, place.clamp(min=0).flatten()).view(sequences, columns, width)
    earlier = gather_columns(memory, (columns + place - begin).clamp(max=columns - 1))
    return torch.where((place >= begin)[..., None], tokens, earlier)


def live_tokens(cu_seqlens: Tensor, slots: Tensor, tokens: int) -> Tensor:
    """(T, 1) bool: tokens of a sequence that has a page."""
    within = torch.arange(tokens, device=slots.device) < cu_seqlens[-1]
    return ((slots > 0)[sequence_of_tokens(cu_seqlens, tokens)] & within)[:, None]


def write_pages_(state: Tensor, new: Tensor, old: Tensor, cu_seqlens: Tensor, slots: Tensor) -> None:
    """state[slots] = new in place, except for page 0 and for sequences without tokens, which keep ``old``."""
    writes = (slots > 0) & (cu_seqlens.diff() > 0)
    writes = writes.view(-1, *[1] * (new.ndim - 1))
    state.index_copy_(0, slots.to(torch.int64), torch.where(writes, new.to(state.dtype), old))
