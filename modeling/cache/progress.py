"""How far a batch of sequences has been read."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# Ids kept to tell whether a text goes on from what a cache has seen.
LAST_IDS = 8
UNKNOWN_ID = -1


class Progress:
    """Counters that a cache shares with its layers.

    Args:
        static: Whether they are buffers that a compiled step counts up in place.

    Attributes:
        columns: Columns seen, pads included: an int, or a () int64 tensor in the static form.
        next_position: (B,) int64 position of each row's next token; None before the first.
        last_ids: (B, n) int64, n at most 8: ids of the last columns, -1 where embeddings were read.
    """

    def __init__(self, static: bool) -> None:
        self.static = static
        self.columns: int | Tensor = 0
        self.next_position: Tensor | None = None
        self.last_ids: Tensor | None = None

    def place(self, next_position: Tensor, last_ids: Tensor | None = None, columns: int = 0) -> None:
        """Take these tensors; in the static form they become the buffers."""
        batch, device = next_position.shape[0], next_position.device
        if last_ids is None:
            last_ids = torch.full((batch, 0), UNKNOWN_ID, device=device)
        if self.static and last_ids.shape[1] < LAST_IDS:
            last_ids = F.pad(last_ids, (LAST_IDS - last_ids.shape[1], 0), value=UNKNOWN_ID)
        self.next_position, self.last_ids = next_position, last_ids
        self.columns = torch.full((), columns, device=device) if self.static else columns

    def advance(self, columns: int, next_position: Tensor, ids: Tensor | None) -> None:
        """Count ``columns`` more, whose ids (B, columns) are unknown where None."""
        if self.next_position is None:
            self.place(next_position.clone())
        assert self.next_position is not None and self.last_ids is not None
        if ids is None:
            ids = torch.full((next_position.shape[0], min(columns, LAST_IDS)), UNKNOWN_ID, device=next_position.device)
        last_ids = last_columns(self.last_ids, ids)
        if isinstance(self.columns, Tensor):
            self.columns.add_(columns)
            self.next_position.copy_(next_position)
            self.last_ids.copy_(last_ids)
        else:
            self.columns += columns
            self.next_position, self.last_ids = next_position, last_ids

    def tensors(self) -> list[Tensor]:
        """Every tensor there is."""
        return [t for t in (self.columns, self.next_position, self.last_ids) if isinstance(t, Tensor)]

    def map(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply ``function`` to what has rows; static buffers keep their place where they fit."""
        for name in ("next_position", "last_ids"):
            old: Tensor | None = getattr(self, name)
            if old is None:
                continue
            new = function(old)
            if self.static and new.shape == old.shape and new.device == old.device:
                old.copy_(new)
            else:
                setattr(self, name, new)

    def reset(self) -> None:
        """Begin anew; static buffers stay."""
        if isinstance(self.columns, Tensor):
            self.columns.zero_()
            self.map(lambda t: torch.full_like(t, UNKNOWN_ID) if t.ndim == 2 else torch.zeros_like(t))
        else:
            self.columns, self.next_position, self.last_ids = 0, None, None

    def clone(self) -> "Progress":
        """An independent copy."""
        copied = Progress(self.static)
        for name, value in vars(self).items():
            setattr(copied, name, value.clone() if isinstance(value, Tensor) else value)
        return copied


def last_columns(earlier: Tensor, later: Tensor) -> Tensor:
    """(B, at most 8) the last of two runs of ids."""
    return torch.cat((earlier, later[:, -LAST_IDS:].to(earlier)), dim=1)[:, -LAST_IDS:]
