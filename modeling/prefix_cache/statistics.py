"""Counts and sizes of a ``PrefixCache``."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PrefixCacheStatistics:
    """What a ``PrefixCache`` has done since it was made or cleared, and what it holds now.

    Attributes:
        lookups: Calls of ``prefill``, those by ``generate`` included.
        hits: Lookups that reused at least one token.
        tokens_asked: Tokens of all lookups.
        tokens_reused: Those of them that were not read again.
        disk_hits: Hits that came from a file.
        evictions: Snapshots that had to leave memory.
        snapshots: Snapshots in memory.
        nbytes: Bytes in memory.
        disk_nbytes: Bytes of files.
    """

    lookups: int = 0
    hits: int = 0
    tokens_asked: int = 0
    tokens_reused: int = 0
    disk_hits: int = 0
    evictions: int = 0
    snapshots: int = 0
    nbytes: int = 0
    disk_nbytes: int = 0

    @property
    def token_hit_rate(self) -> float:
        """Tokens reused over tokens asked; 0 before the first lookup."""
        return self.tokens_reused / max(self.tokens_asked, 1)
