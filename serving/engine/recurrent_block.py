"""The recurrent block in vLLM: products in its parallel layers, states in its pages, the arithmetic in our ops."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from vllm.compilation.breakable_cudagraph import eager_break_during_capture
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.mamba.abstract import MambaBase
from vllm.model_executor.model_loader.weight_utils import sharded_weight_loader
from vllm.model_executor.utils import set_weight_attrs
from vllm.utils.torch_utils import direct_register_custom_op
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling.ops.causal_conv1d import causal_conv1d_varlen_
from recurrent_gemma.modeling.ops.gated_activation import gated_activation
from recurrent_gemma.modeling.ops.linear import block_diagonal_linear
from recurrent_gemma.modeling.ops.rg_lru import rg_lru_varlen_
from recurrent_gemma.serving.engine.batch import RecurrentBatch
from recurrent_gemma.serving.engine.products import pair_of_products, product_back
from recurrent_gemma.serving.engine.state import history_layout, state_dtypes, state_shapes
from recurrent_gemma.serving.plugin import RECURRENCE_OP, STATE_BACKEND


class ConvWeights(nn.Module):
    """Taps and bias of this rank's channels."""

    def __init__(self, channels: int, taps: int) -> None:
        super().__init__()
        self.weight = _sharded(channels, 1, taps)
        self.bias = _sharded(channels)


class RglruWeights(nn.Module):
    """Gates of this rank's heads, and the decay of their channels."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.recurrent_param = _sharded(heads * width)
        self.input_gate_weight = _sharded(heads, width, width)
        self.input_gate_bias = _sharded(heads, width)
        self.recurrent_gate_weight = _sharded(heads, width, width)
        self.recurrent_gate_bias = _sharded(heads, width)


class RecurrentBlock(nn.Module, MambaBase):
    """linear_out(act(linear_y(x)) * rg_lru(conv(linear_x(x)))), with states in vLLM's pages.

    Ranks share the block by heads: gates are block-diagonal over heads, and all else between the products goes channel
    by channel, so a rank needs nothing of the others before the sum in ``linear_out``.
    """

    def __init__(self, config: RecurrentGemmaConfig, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        self.config, self.vllm_config, self.prefix = config, vllm_config, prefix
        shards = get_tensor_model_parallel_world_size()
        heads, head_width = config.num_attention_heads // shards, config.lru_width // config.num_attention_heads
        self.linear_in = pair_of_products(config, config.lru_width, vllm_config, prefix=f"{prefix}.linear_in")
        self.linear_out = product_back(config, config.lru_width, vllm_config, prefix=f"{prefix}.linear_out")
        self.conv_1d = ConvWeights(heads * head_width, config.conv1d_width)
        self.rg_lru = RglruWeights(heads, head_width)
        self.act_fn = ACT2FN[config.hidden_activation]
        # vLLM binds pages, and the op below finds the layer, by this name.
        layers = vllm_config.compilation_config.static_forward_context
        if prefix in layers:
            raise ValueError(f"prefix: expected a name of one layer only, got {prefix!r} twice.")
        layers[prefix] = self
        self.kv_cache: tuple[Tensor, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        """x (T, D), the packed tokens of a batch, to (T, D)."""
        both, _ = self.linear_in(x)
        gate, inputs = both.chunk(2, dim=-1)
        mixed = torch.empty_like(inputs, memory_format=torch.contiguous_format)
        getattr(torch.ops.vllm, RECURRENCE_OP)(inputs, mixed, self.prefix)
        output, _ = self.linear_out(gated_activation(gate, mixed, self.act_fn))
        return output

    def mix(self, inputs: Tensor, batch: RecurrentBatch, states: Tensor, histories: Tensor) -> Tensor:
        """Convolution, gates and recurrence of packed sequences.

        Args:
            inputs: (T, R) of this rank's channels.
            batch: The sequences; tokens after the last of them are padding.
            states: (pages, R) fp32, changed in place.
            histories: (pages, K - 1, R) or (pages, R, K - 1) in the dtype of ``inputs``, changed in place.

        Returns:
            (T, R); 0 at padding.
        """
        pages: dict[str, Any] = {
            "cu_seqlens": batch.cu_seqlens,
            "slots": batch.slots,
            "has_initial": batch.has_initial,
        }
        conv, lru = self.conv_1d, self.rg_lru
        x = causal_conv1d_varlen_(
            inputs, conv.weight.squeeze(1), conv.bias, histories, **pages, layout=history_layout()
        )
        return rg_lru_varlen_(
            x,
            block_diagonal_linear(x, lru.input_gate_weight, lru.input_gate_bias),
            block_diagonal_linear(x, lru.recurrent_gate_weight, lru.recurrent_gate_bias),
            lru.recurrent_param,
            states,
            **pages,
        )

    def mix_of_nobody(self, inputs: Tensor) -> Tensor:
        """``mix`` of one sequence without a past, for vLLM's dry runs: their memory and kernels are those of a prompt.

        Args:
            inputs: (T, R).

        Returns:
            (T, R).
        """
        batch = RecurrentBatch(
            torch.arange(2, dtype=torch.int32, device=inputs.device) * inputs.shape[0],
            torch.ones(1, dtype=torch.int32, device=inputs.device),
            torch.zeros(1, dtype=torch.bool, device=inputs.device),
        )
        shapes = zip(self.get_state_shape(), self.get_state_dtype(), strict=True)
        return self.mix(inputs, batch, *(inputs.new_zeros(2, *shape, dtype=dtype) for shape, dtype in shapes))

    def get_state_shape(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of what a page holds."""
        return state_shapes(self.config, get_tensor_model_parallel_world_size())

    def get_state_dtype(self) -> tuple[torch.dtype, ...]:
        """Dtypes of what a page holds."""
        return state_dtypes(self.vllm_config)

    @property
    def mamba_type(self) -> MambaAttentionBackendEnum:
        """Who describes batches to this layer."""
        return MambaAttentionBackendEnum[STATE_BACKEND]


def _sharded(*shape: int) -> nn.Parameter:
    """A parameter of this rank, whose first dimension is the rank's part of the checkpoint's."""
    parameter = nn.Parameter(torch.empty(*shape), requires_grad=False)
    set_weight_attrs(parameter, {"weight_loader": sharded_weight_loader(0)})
    return parameter


@eager_break_during_capture
def _recurrence(inputs: Tensor, mixed: Tensor, layer_name: str) -> None:
    context = get_forward_context()
    layer = context.no_compile_layers[layer_name]
    batches = context.attn_metadata
    # Without a batch vLLM measures memory or warms up.
    mixed.copy_(
        layer.mix_of_nobody(inputs) if batches is None else layer.mix(inputs, batches[layer_name], *layer.kv_cache)
    )


def _recurrence_fake(inputs: Tensor, mixed: Tensor, layer_name: str) -> None:
    return


direct_register_custom_op(
    op_name=RECURRENCE_OP, op_func=_recurrence, mutates_args=["mixed"], fake_impl=_recurrence_fake
)


__all__ = ["RecurrentBlock"]
