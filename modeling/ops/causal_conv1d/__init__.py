"""Causal depthwise convolution of the recurrent block."""

from recurrent_gemma.modeling.ops.causal_conv1d.api import causal_conv1d, conv_history

__all__ = ["causal_conv1d", "conv_history"]
