"""What a recurrent layer keeps of a sequence, as vLLM has it described: shapes, dtypes, and how pages are copied.

One page holds the state of one layer and sequence: first the RG-LRU state in fp32, which so begins where the page
does, aligned, then the last K - 1 inputs of the convolution in the model's dtype.
"""

import torch
from vllm.config import VllmConfig
from vllm.model_executor.layers.mamba.mamba_utils import (
    MambaStateCopyFunc,
    MambaStateShapeCalculator,
    get_conv_copy_spec,
    get_temporal_copy_spec,
    is_conv_state_dim_first,
)

from recurrent_gemma.configuration import RecurrentGemmaConfig


def state_shapes(config: RecurrentGemmaConfig, shards: int) -> tuple[tuple[int, ...], ...]:
    """Shapes of the RG-LRU state and the convolution's history on one of ``shards`` tensor-parallel ranks.

    The history is (K - 1, R) or, where ``VLLM_SSM_CONV_STATE_LAYOUT=DS`` asks for it, (R, K - 1).
    """
    (history,) = MambaStateShapeCalculator.short_conv_state_shape(
        tp_world_size=shards, intermediate_size=config.lru_width, conv_kernel=config.conv1d_width
    )
    return (config.lru_width // shards,), history


def state_dtypes(vllm_config: VllmConfig) -> tuple[torch.dtype, ...]:
    """Dtypes in the same order."""
    return torch.float32, vllm_config.model_config.dtype


def state_copies() -> tuple[MambaStateCopyFunc, ...]:
    """How vLLM finds what to copy when a sequence moves to another page, in the same order."""
    return get_temporal_copy_spec, get_conv_copy_spec


def history_layout() -> str:
    """The ``layout`` of ``causal_conv1d_varlen_`` for these pages."""
    return "channels_taps" if is_conv_state_dim_first() else "taps_channels"


__all__ = ["history_layout", "state_copies", "state_dtypes", "state_shapes"]
