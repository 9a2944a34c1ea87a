"""The layers of the Griffin family. They hold parameters only: state is an argument and a return value.

Parameter names are those of published checkpoints. Source: arXiv 2402.19427, section 2, and
``recurrentgemma/jax/{layers,modules}.py``.
"""

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling.cache import (
    AttentionState,
    AttentionTrail,
    LayerState,
    RecurrentState,
    RecurrentTrail,
    RingState,
)
from recurrent_gemma.modeling.layer_interface import LayerContext, LayerOutput, Sealed
from recurrent_gemma.modeling.ops.causal_conv1d import causal_conv1d
from recurrent_gemma.modeling.ops.gated_activation import gated_activation
from recurrent_gemma.modeling.ops.linear import block_diagonal_linear, linear
from recurrent_gemma.modeling.ops.local_attention import local_attention, local_attention_ring_
from recurrent_gemma.modeling.ops.rg_lru import rg_lru
from recurrent_gemma.modeling.ops.rms_norm import rms_norm

# Elements of the widest activation that a block makes at a time in inference on CPU: few enough to stay in the
# last-level cache from one operation to the next, and to be served from memory that the process has already.
_CPU_ELEMENTS = 1 << 22
# Fewer rows than this, and the matrix products read and arrange their weights too often.
_CPU_ROWS = 1024

# Transformers' names of attention implementations, and the backend of the local attention op each one selects.
ATTENTION_BACKENDS = {"sdpa": "blocked", "flex_attention": "flex", "eager": "reference"}

# Names of the linear layers of each part of a block. What adapts them all goes by these.
LINEAR_LAYERS = {
    "recurrent": ["linear_x", "linear_y", "linear_out"],
    "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "mlp": ["gate_proj", "up_proj", "down_proj"],
}
LINEAR_LAYER_NAMES = [name for names in LINEAR_LAYERS.values() for name in names]


def rotary_angles(positions: Tensor, config: RecurrentGemmaConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine (B, 1, L, rotary_dim / 2) in ``dtype`` of RoPE's angles at ``positions`` (B, L)."""
    exponents = torch.arange(0, config.rotary_dim, 2, device=positions.device, dtype=dtype) / config.rotary_dim
    frequencies = 1.0 / config.rope_parameters["rope_theta"] ** exponents
    angles = positions[:, None, :, None].to(dtype) * frequencies
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the first ``2 * cos.shape[-1]`` dimensions of x (B, H, L, D), in cos's dtype; the others pass."""
    half = cos.shape[-1]
    first, second, rest = x.split((half, half, x.shape[-1] - 2 * half), dim=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    if x.dtype != cos.dtype:
        rotated = (rotated[0].to(x.dtype), rotated[1].to(x.dtype))
    return torch.cat((*rotated, rest), dim=-1)


class RecurrentGemmaScaledEmbedding(nn.Embedding):
    """Embedding times a constant. The source rounds sqrt(D) to bfloat16 whatever the model's dtype."""

    def __init__(self, num_embeddings: int, embedding_dim: int, scale: bool) -> None:
        super().__init__(num_embeddings, embedding_dim)
        self.embed_scale = float(torch.tensor(embedding_dim**0.5, device="cpu").to(torch.bfloat16)) if scale else 1.0

    def forward(self, input_ids: Tensor) -> Tensor:
        embedded = super().forward(input_ids)
        return embedded if self.embed_scale == 1.0 else embedded * self.embed_scale


def scaled_init_linear(in_features: int, out_features: int, init_scale: float) -> nn.Linear:
    """A linear layer whose weights start with variance ``init_scale / in_features`` instead of ``1 / in_features``.

    Not a class of its own: bitsandbytes and others quantize ``nn.Linear`` itself and silently leave subclasses out.
    """
    linear = nn.Linear(in_features, out_features)
    linear.init_scale = init_scale  # type: ignore[assignment]
    return linear


def apply_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)``, by the op ``linear`` where it is faster and nothing but a plain layer would run."""
    if x.is_cpu and not torch.is_grad_enabled() and type(layer) is nn.Linear and not _is_watched(layer):
        return linear(x, layer.weight, layer.bias)
    return layer(x)


def _is_watched(layer: nn.Module) -> bool:
    """Whether a call of ``layer`` does more than its class says: hooks, or a forward of its own as accelerate sets."""
    return bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or "forward" in vars(layer)
        or torch.nn.modules.module._has_any_global_hook()
    )


class RecurrentGemmaRMSNorm(nn.Module):
    """x / rms(x) * (1 + weight), in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, eps=self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


class RecurrentGemmaRglru(nn.Module):
    """Real-Gated Linear Recurrent Unit with block-diagonal gates."""

    def __init__(self, config: RecurrentGemmaConfig) -> None:
        super().__init__()
        heads, width = config.num_attention_heads, config.lru_width // config.num_attention_heads
        self.recurrent_param = nn.Parameter(torch.empty(config.lru_width))
        self.input_gate_weight = nn.Parameter(torch.empty(heads, width, width))
        self.input_gate_bias = nn.Parameter(torch.empty(heads, width))
        self.recurrent_gate_weight = nn.Parameter(torch.empty(heads, width, width))
        self.recurrent_gate_bias = nn.Parameter(torch.empty(heads, width))

    def forward(self, x: Tensor, state: Tensor | None, context: LayerContext) -> tuple[Tensor, ...]:
        """x (B, L, R) and the state (B, R) to y (B, L, R), the new state, and every state if any is recorded."""
        return rg_lru(
            x,
            block_diagonal_linear(x, self.input_gate_weight, self.input_gate_bias),
            block_diagonal_linear(x, self.recurrent_gate_weight, self.recurrent_gate_bias),
            self.recurrent_param,
            state,
            starts=context.starts,
            valid=context.valid,
            return_states=context.record > 0,
        )


class RecurrentGemmaConv1d(nn.Module):
    """Causal depthwise convolution over time."""

    def __init__(self, width: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 1, taps))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor, history: Tensor | None, context: LayerContext) -> tuple[Tensor, Tensor]:
        """x (B, L, R) and the history (B, K - 1, R) to y (B, L, R) and the new history."""
        return causal_conv1d(x, self.weight.squeeze(1), self.bias, history, starts=context.starts, valid=context.valid)


class RecurrentGemmaRecurrentBlock(nn.Module):
    """linear_out(act(linear_y(x)) * rg_lru(conv(linear_x(x))))."""

    def __init__(self, config: RecurrentGemmaConfig) -> None:
        super().__init__()
        self.linear_y = nn.Linear(config.hidden_size, config.lru_width)
        self.linear_x = nn.Linear(config.hidden_size, config.lru_width)
        self.linear_out = scaled_init_linear(config.lru_width, config.hidden_size, config.final_w_init_variance_scale)
        self.conv_1d = RecurrentGemmaConv1d(config.lru_width, config.conv1d_width)
        self.rg_lru = RecurrentGemmaRglru(config)
        self.act_fn = ACT2FN[config.hidden_activation]

    def forward(self, x: Tensor, state: RecurrentState | None, context: LayerContext) -> LayerOutput:
        columns = max(1, _rows_at_a_time(self, x, self.linear_x.out_features) // x.shape[0])
        if x.shape[1] <= columns or context.record:
            return self._mix(x, state, context)
        output = torch.empty_like(x)
        for begin in range(0, x.shape[1], columns):
            span = slice(begin, begin + columns)
            part = self._mix(x[:, span], state, context.columns(span))
            assert isinstance(part.state, RecurrentState)
            output[:, span], state = part.hidden_states, part.state
        assert state is not None
        return LayerOutput(output, state)

    def _mix(self, x: Tensor, state: RecurrentState | None, context: LayerContext) -> LayerOutput:
        history, recurrent = (None, None) if state is None else state
        gate = apply_linear(self.linear_y, x)
        inputs = apply_linear(self.linear_x, x)
        x, history = self.conv_1d(inputs, history, context)
        x, recurrent, *states = self.rg_lru(x, recurrent, context)
        trail = None
        if context.record:
            base = RecurrentState(*map(torch.zeros_like, (history, recurrent))) if state is None else state
            trail = RecurrentTrail(base, inputs, *states).last(context.record, context.starts, context.valid)
        return LayerOutput(
            self.linear_out(gated_activation(gate, x, self.act_fn)), RecurrentState(history, recurrent), trail=trail
        )


class RecurrentGemmaAttention(nn.Module):
    """Local attention with RoPE on the leading dimensions of each head; multi-query in published models."""

    def __init__(self, config: RecurrentGemmaConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.head_dim
        self.dropout = config.attention_dropout
        key_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_width, bias=config.attention_bias)
        self.o_proj = scaled_init_linear(config.hidden_size, config.hidden_size, config.final_w_init_variance_scale)

    def forward(
        self, x: Tensor, state: AttentionState | RingState | None, context: LayerContext, return_weights: bool = False
    ) -> LayerOutput:
        query, key, value = (
            apply_linear(projection, x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        assert context.cos is not None and context.sin is not None
        query, key = (apply_rotary(t, context.cos, context.sin) for t in (query, key))
        options: dict[str, Any] = {
            "starts": context.starts,
            "valid": context.valid,
            "dropout": self.dropout if self.training else 0.0,
            "impl": attention_backend(self.config),
        }
        if isinstance(state, RingState):
            output, *ring = local_attention_ring_(query, key, value, *state, past_length=context.past_length, **options)
            return LayerOutput(self._project(output), RingState(*ring))
        output, new_key, new_value, *weights = local_attention(
            query,
            key,
            value,
            *((None, None) if state is None else state),
            window=self.config.attention_window_size,
            past_length=None if state is None else context.past_length,
            return_weights=return_weights,
            **options,
        )
        trail = None
        if context.record:
            base = AttentionState(key[:, :, :0], value[:, :, :0]) if state is None else state
            trail = AttentionTrail(base, key, value, self.config.attention_window_size)
            trail = trail.last(context.record, context.starts, context.valid)
        return LayerOutput(
            self._project(output), AttentionState(new_key, new_value), weights[0] if weights else None, trail
        )

    def _project(self, output: Tensor) -> Tensor:
        return apply_linear(self.o_proj, output.transpose(1, 2).flatten(2))


class RecurrentGemmaMlp(nn.Module):
    """down_proj(act(gate_proj(x)) * up_proj(x))."""

    def __init__(self, config: RecurrentGemmaConfig) -> None:
        super().__init__()
        # One matrix of two halves in the source, whose fan-in counts both: half the variance.
        self.gate_proj = scaled_init_linear(config.hidden_size, config.mlp_width, 0.5)
        self.up_proj = scaled_init_linear(config.hidden_size, config.mlp_width, 0.5)
        self.down_proj = scaled_init_linear(config.mlp_width, config.hidden_size, config.final_w_init_variance_scale)
        self.act_fn = ACT2FN[config.hidden_activation]

    def forward(self, x: Tensor) -> Tensor:
        rows = _rows_at_a_time(self, x, self.gate_proj.out_features)
        if x.shape[0] * x.shape[1] <= rows:
            return self._mlp(x)
        output = torch.empty_like(x)
        for part, out in zip(x.flatten(0, 1).split(rows), output.flatten(0, 1).split(rows), strict=True):
            out.copy_(self._mlp(part))
        return output

    def _mlp(self, x: Tensor) -> Tensor:
        gate, up = (apply_linear(layer, x) for layer in (self.gate_proj, self.up_proj))
        return apply_linear(self.down_proj, gated_activation(gate, up, self.act_fn))


class RecurrentGemmaDecoderLayer(GradientCheckpointingLayer):
    """Residual block: x += temporal_block(norm(x)); x += mlp_block(norm(x))."""

    def __init__(self, config: RecurrentGemmaConfig, layer_idx: int) -> None:
        super().__init__()
        self.is_recurrent = config.layers_block_type[layer_idx] == "linear_attention"
        self.temporal_pre_norm = RecurrentGemmaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.temporal_block = (
            RecurrentGemmaRecurrentBlock(config) if self.is_recurrent else RecurrentGemmaAttention(config)
        )
        self.channel_pre_norm = RecurrentGemmaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp_block = RecurrentGemmaMlp(config)

    def forward(
        self,
        hidden_states: Tensor,
        state: Sealed[LayerState | None],
        context: Sealed[LayerContext],
        return_weights: bool = False,
    ) -> tuple[Tensor, Sealed[list[Any]]]:
        """Hidden states (B, L, D) after the block, and what else its temporal block gives back."""
        options = {} if self.is_recurrent else {"return_weights": return_weights}
        normed = self.temporal_pre_norm(hidden_states)
        mixed, *rest = self.temporal_block(normed, state.value, context.value, **options)
        hidden_states = hidden_states + mixed
        hidden_states = hidden_states + self.mlp_block(self.channel_pre_norm(hidden_states))
        return hidden_states, Sealed(rest)


def _rows_at_a_time(block: nn.Module, x: Tensor, width: int) -> int:
    """Rows of x (B, L, D), B * L in all, that ``block`` passes through activations of ``width`` together.

    All where gradients or a device other than the CPU are in play, and where somebody watches the block's parts.
    """
    rows, some = x.shape[0] * x.shape[1], max(_CPU_ROWS, _CPU_ELEMENTS // width)
    if rows <= some or torch.is_grad_enabled() or not x.is_cpu or torch.compiler.is_compiling():
        return rows
    parts = itertools.islice(block.modules(), 1, None)
    return rows if any(map(_is_watched, parts)) else some


def attention_backend(config: RecurrentGemmaConfig) -> str:
    """Backend of the local attention op for ``config``'s attention implementation.

    Raises:
        ValueError: This family has no such attention implementation.
    """
    name = config._attn_implementation or "sdpa"
    if name not in ATTENTION_BACKENDS:
        raise ValueError(
            f"attn_implementation: expected one of {sorted(ATTENTION_BACKENDS)} (a window of {config.sliding_window} "
            f"keys with documents and pads), got {name!r}."
        )
    return ATTENTION_BACKENDS[name]
