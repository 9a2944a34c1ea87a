"""The products that a block makes of the residual stream and back to it, in vLLM's parallel layers."""

from vllm.config import VllmConfig
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, RowParallelLinear

from recurrent_gemma.configuration import RecurrentGemmaConfig


def pair_of_products(
    config: RecurrentGemmaConfig, width: int, vllm_config: VllmConfig, prefix: str
) -> MergedColumnParallelLinear:
    """Two products of (T, D) in one, each to this rank's part of ``width``, with biases."""
    return MergedColumnParallelLinear(
        config.hidden_size, [width] * 2, bias=True, quant_config=vllm_config.quant_config, prefix=prefix
    )


def product_back(config: RecurrentGemmaConfig, width: int, vllm_config: VllmConfig, prefix: str) -> RowParallelLinear:
    """The product of this rank's part of ``width`` to (T, D), summed over ranks, with a bias."""
    return RowParallelLinear(width, config.hidden_size, bias=True, quant_config=vllm_config.quant_config, prefix=prefix)


__all__ = ["pair_of_products", "product_back"]
