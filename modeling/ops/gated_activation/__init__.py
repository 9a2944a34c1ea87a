"""Product of an activation and what it gates."""

from recurrent_gemma.modeling.ops.gated_activation.api import gated_activation

__all__ = ["gated_activation"]
