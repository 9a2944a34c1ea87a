"""Pure functions on tensors: state in, state out. They know nothing of modules or configs.

Every op has a reference (its equations), one file for each backend, and an api that validates and picks a backend. A
name that ends in an underscore changes its ``state`` in place, for serving.
"""

from recurrent_gemma.modeling.ops.causal_conv1d import causal_conv1d, causal_conv1d_varlen, causal_conv1d_varlen_
from recurrent_gemma.modeling.ops.cross_entropy import linear_cross_entropy
from recurrent_gemma.modeling.ops.gated_activation import gated_activation
from recurrent_gemma.modeling.ops.linear import block_diagonal_linear, linear
from recurrent_gemma.modeling.ops.local_attention import local_attention
from recurrent_gemma.modeling.ops.rg_lru import rg_lru, rg_lru_varlen, rg_lru_varlen_
from recurrent_gemma.modeling.ops.rms_norm import rms_norm

__all__ = [
    "block_diagonal_linear",
    "causal_conv1d",
    "causal_conv1d_varlen",
    "causal_conv1d_varlen_",
    "gated_activation",
    "linear",
    "linear_cross_entropy",
    "local_attention",
    "rg_lru",
    "rg_lru_varlen",
    "rg_lru_varlen_",
    "rms_norm",
]
