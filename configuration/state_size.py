"""Bytes that one sequence keeps between two tokens: this family's state, and a full-attention cache beside it."""

from dataclasses import dataclass

import torch

from recurrent_gemma.configuration.config import RecurrentGemmaConfig


@dataclass(frozen=True)
class StateSize:
    """Bytes of state of one sequence.

    Attributes:
        recurrent: RG-LRU states, fp32 (R) a recurrent layer.
        conv: Convolution histories, (K - 1, R) a recurrent layer.
        window: Keys and values in the window, (positions, key/value heads * head_dim) each, an attention layer.
    """

    recurrent: int
    conv: int
    window: int

    @property
    def total(self) -> int:
        return self.recurrent + self.conv + self.window


def state_bytes(
    config: RecurrentGemmaConfig, *, length: int | None = None, dtype: torch.dtype | None = None
) -> StateSize:
    """Bytes of the state of one sequence after ``length`` tokens.

    Args:
        config: The model's configuration.
        length: Tokens seen; ``None`` means any number that fills the window, after which the size never changes.
        dtype: Dtype of the model; ``None`` means the config's, or float32 where that has none.

    Raises:
        ValueError: ``length`` is negative.
    """
    itemsize = _itemsize(config, dtype)
    recurrent_layers = config.layers_block_type.count("linear_attention")
    attention_layers = config.num_hidden_layers - recurrent_layers
    window = config.attention_window_size
    positions = window if length is None else min(window, _checked(length))
    return StateSize(
        recurrent=recurrent_layers * config.lru_width * torch.float32.itemsize,
        conv=recurrent_layers * (config.conv1d_width - 1) * config.lru_width * itemsize,
        window=attention_layers * positions * _kv_width(config) * itemsize,
    )


def kv_cache_bytes(config: RecurrentGemmaConfig, length: int, *, dtype: torch.dtype | None = None) -> int:
    """Bytes of the key/value cache of one sequence in a Gemma-like model: as many layers, all with full attention.

    Heads and their width are the config's, so the layers compared are alike.

    Args:
        config: The model's configuration.
        length: Tokens seen.
        dtype: Dtype of the model; ``None`` means the config's, or float32 where that has none.

    Raises:
        ValueError: ``length`` is negative.
    """
    return config.num_hidden_layers * _checked(length) * _kv_width(config) * _itemsize(config, dtype)


def _kv_width(config: RecurrentGemmaConfig) -> int:
    return 2 * config.num_key_value_heads * config.head_dim


def _itemsize(config: RecurrentGemmaConfig, dtype: torch.dtype | None) -> int:
    found = dtype or config.dtype or torch.float32
    return (getattr(torch, found) if isinstance(found, str) else found).itemsize


def _checked(length: int) -> int:
    if length < 0:
        raise ValueError(f"length: expected at least 0, got {length}.")
    return length
