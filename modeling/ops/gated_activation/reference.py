"""The product as its equation."""

from collections.abc import Callable

from torch import Tensor


def gated_activation_reference(gate: Tensor, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """Output (..., F)."""
    return activation(gate) * x
