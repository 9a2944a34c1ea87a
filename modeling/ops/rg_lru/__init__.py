"""RG-LRU: the family's gated linear recurrence."""

from recurrent_gemma.modeling.ops.rg_lru.api import rg_lru

__all__ = ["rg_lru"]
