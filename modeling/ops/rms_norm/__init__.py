"""Root mean square norm."""

from recurrent_gemma.modeling.ops.rms_norm.api import rms_norm

__all__ = ["rms_norm"]
