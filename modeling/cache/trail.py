"""Rollback: what a layer must keep of its last columns to give its state after any of them.

A recurrence cannot run backwards, but its output is its state: the states of the last T columns are a slice of what the
forward pass computed anyway. Convolution and attention need their inputs of these columns.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from recurrent_gemma.modeling.cache.progress import last_columns
from recurrent_gemma.modeling.cache.states import AttentionState, RecurrentState
from recurrent_gemma.modeling.ops.causal_conv1d import conv_history
from recurrent_gemma.modeling.ops.local_attention import extend_window


class ColumnTrail(NamedTuple):
    """What the layers' trails share about their T columns."""

    starts: Tensor  # (B, T) bool, first tokens of documents
    valid: Tensor  # (B, T) bool, false at pads
    next_position: Tensor  # (B, T) int64, the position that a token after this column would have
    ids: Tensor  # (B, T) int64, -1 where embeddings were read
    base_position: Tensor  # (B,) int64, next_position before the first column
    base_ids: Tensor  # (B, n) int64, the last ids before the first column

    def position_after(self, count: int) -> Tensor:
        """(B,) position of a token after the first ``count`` columns."""
        return self.next_position[:, count - 1].clone() if count else self.base_position

    def ids_after(self, count: int) -> Tensor:
        """(B, n) last ids after the first ``count`` columns."""
        return last_columns(self.base_ids, self.ids[:, :count])

    def last(self, count: int) -> "ColumnTrail":
        """The last ``count`` columns."""
        cut = self.valid.shape[1] - count
        starts, valid, next_position, ids = (t[:, cut:].clone() for t in self[:4])
        return ColumnTrail(starts, valid, next_position, ids, self.position_after(cut), self.ids_after(cut))

    def joined(self, later: "ColumnTrail") -> "ColumnTrail":
        """These columns and later ones."""
        pairs = zip(self[:4], later[:4], strict=True)
        starts, valid, next_position, ids = (torch.cat(pair, dim=1) for pair in pairs)
        return ColumnTrail(starts, valid, next_position, ids, self.base_position, self.base_ids)


class RecurrentTrail(NamedTuple):
    """Trail of a recurrent block."""

    base: RecurrentState  # before the first column
    conv: Tensor  # (B, T, R) inputs of the convolution
    rg_lru: Tensor  # (B, T, R) fp32, the state after each column

    def state_after(self, count: int, starts: Tensor | None, valid: Tensor | None) -> RecurrentState:
        """The state after the first ``count`` columns; starts and valid (B, T) are the columns' own."""
        if count == 0:
            return self.base
        starts, valid = (None if marks is None else marks[:, :count] for marks in (starts, valid))
        conv = conv_history(self.conv[:, :count], self.base.conv.to(self.conv.dtype), starts=starts, valid=valid)
        return RecurrentState(conv, self.rg_lru[:, count - 1].clone())

    def last(self, count: int, starts: Tensor | None, valid: Tensor | None) -> "RecurrentTrail":
        """The trail of the last ``count`` columns alone."""
        cut = self.conv.shape[1] - count
        return RecurrentTrail(
            self.state_after(cut, starts, valid), self.conv[:, cut:].clone(), self.rg_lru[:, cut:].clone()
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> "RecurrentTrail":
        """The trail with ``function`` applied to every tensor."""
        return RecurrentTrail(RecurrentState(*map(function, self.base)), function(self.conv), function(self.rg_lru))

    def joined(self, later: "RecurrentTrail") -> "RecurrentTrail":
        """The trail of these columns and later ones."""
        return RecurrentTrail(
            self.base, torch.cat((self.conv, later.conv), dim=1), torch.cat((self.rg_lru, later.rg_lru), dim=1)
        )


class AttentionTrail(NamedTuple):
    """Trail of a local attention block."""

    base: AttentionState  # before the first column
    key: Tensor  # (B, G, T, D)
    value: Tensor  # (B, G, T, D)
    window: int  # W

    def state_after(self, count: int, starts: Tensor | None, valid: Tensor | None) -> AttentionState:
        """The state after the first ``count`` columns; valid (B, T) are the columns' own."""
        if count == 0:
            return self.base
        head = None if valid is None else valid[:, :count]
        return AttentionState(
            *(
                extend_window(past, new[:, :, :count], window=self.window, valid=head)
                for past, new in zip(self.base, (self.key, self.value), strict=True)
            )
        )

    def last(self, count: int, starts: Tensor | None, valid: Tensor | None) -> "AttentionTrail":
        """The trail of the last ``count`` columns alone."""
        cut = self.key.shape[2] - count
        key, value = (t[:, :, cut:].clone() for t in (self.key, self.value))
        return AttentionTrail(self.state_after(cut, starts, valid), key, value, self.window)

    def map(self, function: Callable[[Tensor], Tensor]) -> "AttentionTrail":
        """The trail with ``function`` applied to every tensor."""
        base = AttentionState(*map(function, self.base))
        return AttentionTrail(base, function(self.key), function(self.value), self.window)

    def joined(self, later: "AttentionTrail") -> "AttentionTrail":
        """The trail of these columns and later ones."""
        key, value = torch.cat((self.key, later.key), dim=2), torch.cat((self.value, later.value), dim=2)
        return AttentionTrail(self.base, key, value, self.window)


LayerTrail = RecurrentTrail | AttentionTrail
