"""What a recurrent block has to know of a batch: where sequences begin, where their states lie, and who has one.

vLLM tells backends for Mamba's kernels decodes from prefills. Here both are sequences of some length in one packed row,
a single token among them, and one call of the varlen ops takes all of them.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
)
from vllm.v1.attention.backends.utils import NULL_BLOCK_ID, mamba_get_block_table_tensor
from vllm.v1.kv_cache_interface import KVCacheSpec


@dataclass
class RecurrentBatch:
    """N sequences, those that pad a CUDA graph's batch included."""

    cu_seqlens: Tensor  # (N + 1) int32, bounds of the sequences' new tokens
    slots: Tensor  # (N) int32, page of each sequence's state; the null page for padding
    has_initial: Tensor  # (N) bool, whether tokens came before; false where a document starts


class RecurrentBatchBuilder(AttentionMetadataBuilder[RecurrentBatch]):
    """Makes a :class:`RecurrentBatch` of each batch, on the device, in buffers that CUDA graphs find again."""

    # Batches of single tokens. All others run the op outside of graphs.
    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE

    def __init__(
        self, kv_cache_spec: KVCacheSpec, layer_names: list[str], vllm_config: VllmConfig, device: torch.device
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        largest_graph = vllm_config.compilation_config.max_cudagraph_capture_size or 0
        sequences = max(vllm_config.scheduler_config.max_num_seqs, largest_graph)
        self.slots = torch.full((sequences,), NULL_BLOCK_ID, dtype=torch.int32, device=device)
        self.has_initial = torch.zeros(sequences, dtype=torch.bool, device=device)

    def build(
        self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
    ) -> RecurrentBatch:
        """The batch of one forward pass."""
        common = common_attn_metadata
        sequences = common.num_reqs
        cu_seqlens = common.query_start_loc[: sequences + 1]
        lengths = cu_seqlens.diff()
        total = common.seq_lens[:sequences]
        pages = mamba_get_block_table_tensor(
            common.block_table_tensor[:sequences],
            total,
            self.kv_cache_spec,
            self.vllm_config.cache_config.mamba_cache_mode,
        )[:, 0]
        slots, has_initial = self.slots[:sequences], self.has_initial[:sequences]
        # A padding sequence has no tokens, and rows of the tables that hold whatever was there.
        slots.copy_(torch.where(lengths > 0, pages, NULL_BLOCK_ID))
        has_initial.copy_(total > lengths)
        return RecurrentBatch(cu_seqlens, slots, has_initial)


class RecurrentStateBackend(AttentionBackend):
    """Names the builder to vLLM."""

    @staticmethod
    def get_name() -> str:
        """The name in vLLM's log."""
        return "RECURRENT_GEMMA"

    @staticmethod
    def get_builder_cls() -> type[RecurrentBatchBuilder]:
        """The class that describes batches."""
        return RecurrentBatchBuilder

    @classmethod
    def is_ssm(cls) -> bool:
        """That its pages hold states, not keys."""
        return True


__all__ = ["RecurrentBatch", "RecurrentBatchBuilder", "RecurrentStateBackend"]
