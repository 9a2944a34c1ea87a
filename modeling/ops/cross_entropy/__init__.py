"""Cross entropy of a soft-capped linear output, without ever holding the logits of all tokens."""

from recurrent_gemma.modeling.ops.cross_entropy.api import linear_cross_entropy

__all__ = ["linear_cross_entropy"]
