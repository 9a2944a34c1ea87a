"""What passes a layer's border: what a forward pass tells every layer, what a temporal block gives back, and the box
that both cross a residual block's border in.
"""

from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor
from torch.utils._pytree import tree_map

from recurrent_gemma.modeling.cache import LayerState, LayerTrail


class LayerContext(NamedTuple):
    """What one forward pass tells every layer."""

    starts: Tensor | None  # (B, L) bool, first tokens of documents
    valid: Tensor | None  # (B, L) bool, false at pads
    past_length: Tensor  # (B,) tokens seen of the document that goes on
    cos: Tensor | None  # (B, 1, L, rotary_dim / 2), fp32 or fp64
    sin: Tensor | None
    record: int = 0  # how many of the last columns the cache may take back

    def columns(self, span: slice) -> "LayerContext":
        """What the recurrence has to know of some of the columns."""
        starts, valid = (None if marks is None else marks[:, span] for marks in (self.starts, self.valid))
        return self._replace(starts=starts, valid=valid, cos=None, sin=None)


class LayerOutput(NamedTuple):
    """What a temporal block gives back."""

    hidden_states: Tensor  # (B, L, D)
    state: LayerState
    weights: Tensor | None = None  # (B, H, L, past + L) attention weights, if asked for
    trail: LayerTrail | None = None  # of the last ``LayerContext.record`` columns


T = TypeVar("T")


class Sealed(Generic[T]):
    """A value that passes a residual block's border as it is.

    What is wrapped around a block handles the tensors that it finds in tuples and dataclasses: FSDP2's mixed precision
    rounds them to bfloat16, states and RoPE's angles included. Not in here; only accelerate's hooks call ``to``.
    """

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value

    def to(self, device: Any, non_blocking: bool = False) -> "Sealed[T]":
        """The value with its tensors on ``device``."""

        def move(leaf: Any) -> Any:
            return leaf.to(device, non_blocking=non_blocking) if isinstance(leaf, Tensor) else leaf

        return Sealed(tree_map(move, self.value))
