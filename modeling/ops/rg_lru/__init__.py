"""RG-LRU: the family's gated linear recurrence."""

from recurrent_gemma.modeling.ops.rg_lru.api import rg_lru
from recurrent_gemma.modeling.ops.rg_lru.varlen import rg_lru_varlen, rg_lru_varlen_

__all__ = ["rg_lru", "rg_lru_varlen", "rg_lru_varlen_"]
