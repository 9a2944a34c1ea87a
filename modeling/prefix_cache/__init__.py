"""States of prompts, kept for prompts that begin alike: a radix tree over tokens, its eviction, and files beside it."""

from recurrent_gemma.modeling.prefix_cache.cache import PrefixCache
from recurrent_gemma.modeling.prefix_cache.statistics import PrefixCacheStatistics

__all__ = ["PrefixCache", "PrefixCacheStatistics"]
