"""The one place that turns masks, positions, document boundaries and the cache into what the layers need.

One rule: position 0 at a valid token starts a document, and a pad does not exist. Everything below derives from it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from recurrent_gemma.modeling.ops.dispatch import holds_on_cpu
from recurrent_gemma.modeling.ops.ragged import gather_columns, valid_first


class SequenceInputs(NamedTuple):
    """What every layer of one forward pass shares."""

    positions: Tensor  # (B, L) int64, place of each token in its document
    starts: Tensor | None  # (B, L) bool, valid first tokens of documents, None where it is known that there is none
    valid: Tensor | None  # (B, L) bool, None where there is no pad
    next_position: Tensor  # (B,) int64, position of each row's next valid token after this pass
    past_length: Tensor  # (B,) int64, tokens before this pass that belong to the document which goes on here


def derive_sequence_inputs(
    *,
    batch: int,
    length: int,
    device: torch.device,
    past_columns: int = 0,
    past_next_position: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> SequenceInputs:
    """Positions, document starts and valid tokens of one forward pass.

    Args:
        batch, length: B rows of L new columns.
        device: Where the results live.
        past_columns: Columns that the cache has seen, pads included.
        past_next_position: (B,) the cache's next position of each row; zeros when None.
        attention_mask: (B, past_columns + L) of 0 and 1; its first columns are known to the cache already.
        position_ids: (B, L) or (1, L). 0 starts a document; otherwise a valid token goes on by 1. Ignored at pads.
        cu_seq_lens_q: (documents + 1,) int, cumulative lengths of the documents packed in one row.
        seq_idx: (B, L) int, a document's number at each of its tokens.

    Raises:
        TypeError, ValueError: A shape or dtype is wrong, a position follows no rule, or two sources disagree. Values
            are looked at on CPU; on an accelerator an asynchronous assertion fails instead, and while compiling nothing
            is checked, so that no device is waited for.
    """
    valid = _valid_tokens(attention_mask, batch, length, past_columns, device)
    start_position = (
        torch.zeros(batch, dtype=torch.long, device=device)
        if past_next_position is None
        else past_next_position.to(device)
    )
    boundaries = _document_boundaries(cu_seq_lens_q, seq_idx, batch, length, past_columns, device)
    if boundaries is not None:
        derived = _positions_in_documents(boundaries, valid)
    elif position_ids is None:
        derived = _counted_positions(start_position, valid, length)
    else:
        derived = None
    if position_ids is None:
        assert derived is not None
        positions = derived
    else:
        positions = _checked_positions(position_ids, start_position, valid, batch, length, device)
        if derived is not None:
            agree = positions == derived if valid is None else (positions == derived) | ~valid
            expect_all(
                agree,
                "position_ids: expected the positions that cu_seq_lens_q or seq_idx give, from 0 on in every document",
                positions,
                "pass one of them only",
            )
    starts = positions == 0 if valid is None else (positions == 0) & valid
    return SequenceInputs(
        positions=positions,
        starts=None if holds_on_cpu(~starts) else starts,
        valid=valid,
        next_position=next_positions(positions, valid, start_position)[:, -1].clone(),  # a view keeps all alive
        past_length=start_position,
    )


def check_token_ids(input_ids: Tensor, vocab_size: int) -> None:
    """Raise ValueError if an id lies outside the vocabulary."""
    expect_all(
        (input_ids >= 0) & (input_ids < vocab_size),
        f"input_ids: expected ids from 0 to {vocab_size - 1} (vocab_size - 1)",
        input_ids,
        "use this model's own tokenizer",
    )


def check_labels(labels: Tensor, shape: tuple[int, ...], vocab_size: int, name: str = "labels") -> None:
    """Raise TypeError or ValueError unless labels are int64 ids of ``shape``, or -100 where no loss is wanted."""
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"{name}: expected an int64 tensor, got {got}.")
    if tuple(labels.shape) != shape:
        raise ValueError(f"{name}: expected shape (B, L) = {shape}, got {tuple(labels.shape)}.")
    expect_all(
        ((labels >= 0) & (labels < vocab_size)) | (labels == -100),
        f"{name}: expected ids from 0 to {vocab_size - 1} (vocab_size - 1), or -100",
        labels,
        "mark what is not to be learned with -100",
    )


def check_key_lengths(cu_seq_lens_k: Tensor | None, cu_seq_lens_q: Tensor | None) -> None:
    """Raise ValueError if the keys' document lengths, which collators send along, are not the queries'."""
    if cu_seq_lens_k is None:
        return
    expected = "cu_seq_lens_k: expected the same lengths as cu_seq_lens_q"
    if cu_seq_lens_q is None or cu_seq_lens_k.shape != cu_seq_lens_q.shape:
        raise ValueError(f"{expected}, got others; leave cu_seq_lens_k out.")
    expect_all(cu_seq_lens_k == cu_seq_lens_q, expected, cu_seq_lens_k, "leave cu_seq_lens_k out")


def _valid_tokens(
    mask: Tensor | None, batch: int, length: int, past_columns: int, device: torch.device
) -> Tensor | None:
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise TypeError(
            f"attention_mask: expected a (B, past + new) tensor of 0 and 1, got {type(mask).__name__}; prepared masks "
            "of other models are not used here."
        )
    expected = (batch, past_columns + length)
    if tuple(mask.shape) != expected:
        raise ValueError(
            f"attention_mask: expected shape (B, past + new columns) = {expected}, got {tuple(mask.shape)}; it covers "
            f"the {past_columns} columns in the cache and the {length} new ones, and 4-D masks are not supported."
        )
    new = mask[:, past_columns:].to(device)
    expect_all(
        (new == 0) | (new == 1),
        "attention_mask: expected 0 (pad) or 1 (token)",
        new,
        "additive masks are not supported",
    )
    valid = new != 0
    return None if holds_on_cpu(valid) else valid


def _document_boundaries(
    cu_seq_lens_q: Tensor | None,
    seq_idx: Tensor | None,
    batch: int,
    length: int,
    past_columns: int,
    device: torch.device,
) -> Tensor | None:
    """(B, L) bool, true at the first column of every document; None if the caller names no documents."""
    if cu_seq_lens_q is None and seq_idx is None:
        return None
    if past_columns:
        raise ValueError(
            "cu_seq_lens_q, seq_idx: expected None together with a cache that holds tokens, since they do not say "
            "whether the first document goes on; pass position_ids instead."
        )
    boundaries = []
    if cu_seq_lens_q is not None:
        boundaries.append(_boundaries_from_lengths(cu_seq_lens_q.to(device), batch, length))
    if seq_idx is not None:
        if tuple(seq_idx.shape) != (batch, length):
            raise ValueError(f"seq_idx: expected shape (B, L) = {(batch, length)}, got {tuple(seq_idx.shape)}.")
        seq_idx = seq_idx.to(device)
        first = torch.ones(batch, 1, dtype=torch.bool, device=device)
        boundaries.append(torch.cat((first, seq_idx[:, 1:] != seq_idx[:, :-1]), dim=1))
    if len(boundaries) == 2:
        expect_all(
            boundaries[0] == boundaries[1],
            "cu_seq_lens_q, seq_idx: expected the same document starts from both",
            boundaries[0],
            "pass one of them only",
        )
    return boundaries[0]


def _boundaries_from_lengths(cu_seq_lens_q: Tensor, batch: int, length: int) -> Tensor:
    if cu_seq_lens_q.ndim != 1 or cu_seq_lens_q.shape[0] < 2 or cu_seq_lens_q.is_floating_point():
        raise ValueError(
            "cu_seq_lens_q: expected a 1-D integer tensor of at least 2 cumulative lengths, got "
            f"{cu_seq_lens_q.dtype} of shape {tuple(cu_seq_lens_q.shape)}."
        )
    if batch != 1:
        raise ValueError(
            f"cu_seq_lens_q: expected one packed row (B = 1), got B = {batch}; use seq_idx or position_ids."
        )
    previous = torch.cat((cu_seq_lens_q.new_full((1,), -1), cu_seq_lens_q[:-1]))
    grows = cu_seq_lens_q > previous
    first, last = cu_seq_lens_q[:1] == 0, cu_seq_lens_q[-1:] == length
    expect_all(
        torch.cat((grows[:1] & first, grows[1:-1], grows[-1:] & last)),
        f"cu_seq_lens_q: expected growing values from 0 to L = {length}",
        cu_seq_lens_q,
        "leave out empty documents",
    )
    boundaries = torch.zeros(1, length, dtype=torch.bool, device=cu_seq_lens_q.device)
    boundaries[0, cu_seq_lens_q[:-1].long()] = True
    return boundaries


def _positions_in_documents(boundaries: Tensor, valid: Tensor | None) -> Tensor:
    columns = torch.arange(boundaries.shape[1], device=boundaries.device).expand_as(boundaries)
    first_column = columns.masked_fill(~boundaries, 0).cummax(dim=1).values
    if valid is None:
        return columns - first_column
    counts = valid.cumsum(dim=1)
    return counts - 1 - (counts - valid.long()).gather(1, first_column)


def _counted_positions(start_position: Tensor, valid: Tensor | None, length: int) -> Tensor:
    if valid is None:
        return start_position[:, None] + torch.arange(length, device=start_position.device)
    return start_position[:, None] + valid.cumsum(dim=1) - 1


def _checked_positions(
    position_ids: Tensor, start_position: Tensor, valid: Tensor | None, batch: int, length: int, device: torch.device
) -> Tensor:
    if position_ids.is_floating_point() or position_ids.dtype == torch.bool:
        raise TypeError(f"position_ids: expected an integer tensor, got {position_ids.dtype}.")
    if tuple(position_ids.shape) not in ((batch, length), (1, length)):
        raise ValueError(
            f"position_ids: expected shape (B, L) = {(batch, length)} or (1, {length}), got "
            f"{tuple(position_ids.shape)}."
        )
    positions = position_ids.to(device=device, dtype=torch.long).expand(batch, length)
    if torch.compiler.is_compiling():
        return positions
    tokens, pads = positions, torch.zeros_like(positions, dtype=torch.bool)
    if valid is not None:
        order = valid_first(valid)
        tokens, pads = gather_columns(positions, order), ~valid.gather(1, order)
    previous = torch.cat((start_position[:, None] - 1, tokens[:, :-1]), dim=1)
    expect_all(
        (tokens == 0) | (tokens == previous + 1) | pads,
        "position_ids: expected every valid token at 0, which starts a document, or one after the valid token before "
        "it (the first one at the cache's next position)",
        tokens,
        "leave position_ids out to count valid tokens",
    )
    return positions


def next_positions(positions: Tensor, valid: Tensor | None, start_position: Tensor) -> Tensor:
    """(B, L) int64: after each column, the position of the row's next valid token; before all, start_position (B,)."""
    if valid is None:
        return positions + 1
    columns = torch.arange(1, valid.shape[1] + 1, device=valid.device)
    last = (valid * columns).cummax(dim=1).values  # 1-based; 0 before the first valid token
    after_last = positions.gather(1, (last - 1).clamp_min(0)) + 1
    return torch.where(last > 0, after_last, start_position[:, None])


def expect_all(condition: Tensor, expected: str, actual: Tensor, remedy: str) -> None:
    """Raise ValueError with the first value of ``actual`` where ``condition`` (same shape) does not hold."""
    if torch.compiler.is_compiling() or condition.device.type == "meta":
        return
    if condition.device.type != "cpu":
        torch._assert_async(condition.all(), f"{expected}; {remedy}.")
    elif not bool(condition.all()):
        place = tuple((~condition).nonzero()[0].tolist())
        raise ValueError(f"{expected}, got {actual[place].item()} at {place}; {remedy}.")
