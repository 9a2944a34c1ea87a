"""Causal depthwise convolution of the recurrent block."""

from recurrent_gemma.modeling.ops.causal_conv1d.api import causal_conv1d, conv_history
from recurrent_gemma.modeling.ops.causal_conv1d.varlen import causal_conv1d_varlen, causal_conv1d_varlen_

__all__ = ["causal_conv1d", "causal_conv1d_varlen", "causal_conv1d_varlen_", "conv_history"]
