"""Local (sliding-window) attention of the attention block."""

from recurrent_gemma.modeling.ops.local_attention.api import local_attention

__all__ = ["local_attention"]
