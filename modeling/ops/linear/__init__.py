"""Products of activations and a layer's weights."""

from recurrent_gemma.modeling.ops.linear.api import block_diagonal_linear, linear

__all__ = ["block_diagonal_linear", "linear"]
