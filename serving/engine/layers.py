"""Local attention, MLP and residual block in vLLM's parallel layers; norm, RoPE and activation are the model's own."""

from torch import Tensor, nn
from transformers.activations import ACT2FN
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import QKVParallelLinear

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling.layers import RecurrentGemmaRMSNorm, apply_rotary
from recurrent_gemma.modeling.ops.gated_activation import gated_activation
from recurrent_gemma.serving.engine.products import pair_of_products, product_back
from recurrent_gemma.serving.engine.recurrent_block import RecurrentBlock


class LocalAttention(nn.Module):
    """Attention of a token to itself and the W tokens before it.

    Ranks share the query heads. Where there are fewer key/value heads than ranks, each rank has a copy of one.
    """

    def __init__(self, config: RecurrentGemmaConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        shards = get_tensor_model_parallel_world_size()
        heads, key_heads = config.num_attention_heads // shards, max(1, config.num_key_value_heads // shards)
        self.head_dim = config.head_dim
        self.widths = [heads * config.head_dim, key_heads * config.head_dim, key_heads * config.head_dim]
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            config.head_dim,
            config.num_attention_heads,
            config.num_key_value_heads,
            bias=config.attention_bias,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}.qkv_proj",
        )
        self.o_proj = product_back(config, config.hidden_size, vllm_config, prefix=f"{prefix}.o_proj")
        self.attn = Attention(
            heads,
            config.head_dim,
            config.head_dim**-0.5,
            num_kv_heads=key_heads,
            cache_config=vllm_config.cache_config,
            quant_config=vllm_config.quant_config,
            # vLLM counts the query's own key: W + 1.
            per_layer_sliding_window=config.sliding_window,
            prefix=f"{prefix}.attn",
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x (T, D), and RoPE's angles (T, 1, rotary_dim / 2), to (T, D)."""
        qkv, _ = self.qkv_proj(x)
        query, key, value = qkv.split(self.widths, dim=-1)
        query, key = (apply_rotary(t.unflatten(-1, (-1, self.head_dim)), cos, sin).flatten(1) for t in (query, key))
        output, _ = self.o_proj(self.attn(query, key, value))
        return output


class Mlp(nn.Module):
    """down_proj(act(gate_proj(x)) * up_proj(x))."""

    def __init__(self, config: RecurrentGemmaConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        width = config.mlp_width
        self.gate_up_proj = pair_of_products(config, width, vllm_config, prefix=f"{prefix}.gate_up_proj")
        self.down_proj = product_back(config, width, vllm_config, prefix=f"{prefix}.down_proj")
        self.act_fn = ACT2FN[config.hidden_activation]

    def forward(self, x: Tensor) -> Tensor:
        """x (T, D) to (T, D)."""
        both, _ = self.gate_up_proj(x)
        gate, up = both.chunk(2, dim=-1)
        output, _ = self.down_proj(gated_activation(gate, up, self.act_fn))
        return output


class ResidualBlock(nn.Module):
    """x += temporal_block(norm(x)); x += mlp_block(norm(x))."""

    def __init__(self, config: RecurrentGemmaConfig, vllm_config: VllmConfig, prefix: str, index: int) -> None:
        super().__init__()
        self.is_recurrent = config.layers_block_type[index] == "linear_attention"
        temporal_block = RecurrentBlock if self.is_recurrent else LocalAttention
        self.temporal_pre_norm = RecurrentGemmaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.temporal_block = temporal_block(config, vllm_config, prefix=f"{prefix}.temporal_block")
        self.channel_pre_norm = RecurrentGemmaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp_block = Mlp(config, vllm_config, prefix=f"{prefix}.mlp_block")

    def forward(self, hidden_states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Hidden states (T, D), and RoPE's angles (T, 1, rotary_dim / 2), to (T, D)."""
        angles = () if self.is_recurrent else (cos, sin)
        hidden_states = hidden_states + self.temporal_block(self.temporal_pre_norm(hidden_states), *angles)
        return hidden_states + self.mlp_block(self.channel_pre_norm(hidden_states))


__all__ = ["LocalAttention", "Mlp", "ResidualBlock"]
