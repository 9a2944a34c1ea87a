"""Local (sliding-window) attention of the attention block."""

from recurrent_gemma.modeling.ops.local_attention.api import extend_window, local_attention
from recurrent_gemma.modeling.ops.local_attention.ring import local_attention_ring_, ring_to_window, window_to_ring

__all__ = ["extend_window", "local_attention", "local_attention_ring_", "ring_to_window", "window_to_ring"]
