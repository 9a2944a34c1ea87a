"""What one layer remembers of a batch of sequences."""

from typing import NamedTuple

import torch
from torch import Tensor

from recurrent_gemma.modeling.ops.local_attention import ring_to_window, window_to_ring


class RecurrentState(NamedTuple):
    """State of a recurrent block."""

    conv: Tensor  # (B, K - 1, R) last valid inputs of the convolution, the newest last
    rg_lru: Tensor  # (B, R) fp32


class AttentionState(NamedTuple):
    """State of a local attention block: each row's last valid keys and values, the newest last."""

    key: Tensor  # (B, G, min(W, tokens), D), RoPE applied
    value: Tensor  # (B, G, min(W, tokens), D)

    def to_ring(self, window: int) -> "RingState":
        """The same in ring buffers. Columns that no token fills yet are never looked at."""
        free = self.key.new_full((self.key.shape[0],), window, dtype=torch.long)
        return RingState(window_to_ring(self.key, window), window_to_ring(self.value, window), free)


class RingState(NamedTuple):
    """State of a local attention block in buffers of fixed address and shape; see ``ops/local_attention/ring.py``."""

    key: Tensor  # (B, G, W + 1, D), RoPE applied
    value: Tensor  # (B, G, W + 1, D)
    free: Tensor  # (B,) int64, the slot that the next token takes

    def to_window(self) -> AttentionState:
        """The same in columns, the newest last."""
        return AttentionState(ring_to_window(self.key, self.free), ring_to_window(self.value, self.free))


LayerState = RecurrentState | AttentionState | RingState
