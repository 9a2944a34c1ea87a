"""Rollback: the trails of the columns that a cache can take back."""

from collections.abc import Callable, Sequence

from torch import Tensor

from recurrent_gemma.modeling.cache.trail import ColumnTrail, LayerTrail

# Columns that can be taken back after a prompt. Drafts of assisted generation are shorter.
DEFAULT_LIMIT = 64


class Recording:
    """What has been read since the last crop.

    Attributes:
        limit: Columns of a prompt that are kept, and of shorter passes after it together.
        columns: What the layers' trails share; None: nothing is recorded.
        trails: One for each layer.
        prompt_read: Whether a pass has been recorded since recording began; the first may be a long one.
    """

    def __init__(self) -> None:
        self.limit = DEFAULT_LIMIT
        self.columns: ColumnTrail | None = None
        self.trails: list[LayerTrail] = []
        self.prompt_read = False

    @property
    def length(self) -> int:
        """Columns that can be taken back."""
        return 0 if self.columns is None else self.columns.valid.shape[1]

    def columns_to_record(self, length: int) -> int:
        """How many of the last columns of a pass over ``length`` the layers' trails have to cover."""
        return length if self.prompt_read else min(length, self.limit)

    def extend(self, trails: Sequence[LayerTrail], columns: ColumnTrail) -> None:
        """Add the last columns of a pass."""
        self.prompt_read = True
        added = columns.valid.shape[1]
        if self.columns is not None:
            columns = self.columns.joined(columns)
            trails = [old.joined(new) for old, new in zip(self.trails, trails, strict=True)]  # type: ignore[arg-type]
        keep = min(columns.valid.shape[1], max(self.limit, added))
        self.trails = [trail.last(keep, columns.starts, columns.valid) for trail in trails]
        self.columns = columns.last(keep)

    def forget(self) -> None:
        """Keep nothing of the past."""
        self.columns, self.trails = None, []

    def map(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply ``function`` to every tensor."""
        if self.columns is not None:
            self.columns = ColumnTrail(*map(function, self.columns))
            self.trails = [trail.map(function) for trail in self.trails]

    def clone(self) -> "Recording":
        """An independent copy; the tensors are shared, since none is ever written into."""
        copied = Recording()
        copied.limit, copied.columns, copied.prompt_read = self.limit, self.columns, self.prompt_read
        copied.trails = list(self.trails)
        copied.map(Tensor.detach)
        return copied
