"""The model's equations in fp64: plain torch, one step after the other, differentiable by autograd.

A third route to the same numbers, independent of DeepMind's code and of the package's ops and layers: both are measured
against it. (DeepMind's own fp64 mode will not do: it casts the scan to fp32.) One-letter names: B batch, L length,
D width, R lru_width, H heads, K taps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from recurrent_gemma.configuration import RecurrentGemmaConfig

Weights = dict[str, Tensor]


def embed(weights: Weights, config: RecurrentGemmaConfig, tokens: Tensor) -> Tensor:
    """(B, L) -> (B, L, D)."""
    x = weights["model.embed_tokens.weight"][tokens]
    if config.embeddings_scale_by_sqrt_dim:
        x = x * torch.tensor(config.hidden_size).sqrt().bfloat16().to(x.dtype)
    return x


def block(weights: Weights, config: RecurrentGemmaConfig, kind: str, x: Tensor, positions: Tensor) -> Tensor:
    """One residual block, (B, L, D) -> (B, L, D). ``weights`` are named from the block on."""
    temporal = _recurrent if kind == "linear_attention" else _attention
    part = {name.removeprefix("temporal_block."): w for name, w in weights.items()}
    x = x + temporal(part, config, _norm(x, weights["temporal_pre_norm.weight"], config), positions)
    y = _norm(x, weights["channel_pre_norm.weight"], config)
    mlp = {name.removeprefix("mlp_block."): w for name, w in weights.items()}
    return x + _linear(mlp, "down_proj", _gelu(_linear(mlp, "gate_proj", y)) * _linear(mlp, "up_proj", y))


def logits(weights: Weights, config: RecurrentGemmaConfig, tokens: Tensor, positions: Tensor) -> Tensor:
    """(B, L, V) of the whole model."""
    x = embed(weights, config, tokens)
    for layer, kind in enumerate(config.layers_block_type):
        x = block(block_weights(weights, layer), config, kind, x, positions)
    out = _norm(x, weights["model.final_norm.weight"], config) @ weights["model.embed_tokens.weight"].T
    cap = config.logits_soft_cap
    return cap * torch.tanh(out / cap) if cap else out


def block_weights(weights: Weights, layer: int) -> Weights:
    """The weights of one block, named from the block on."""
    prefix = f"model.layers.{layer}."
    return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}


def _recurrent(weights: Weights, config: RecurrentGemmaConfig, x: Tensor, positions: Tensor) -> Tensor:
    gate_branch = _gelu(_linear(weights, "linear_y", x))
    x = _linear(weights, "linear_x", x)
    taps = weights["conv_1d.weight"][:, 0]  # (R, K), the last tap meets the current token
    convolved = []
    for t in range(x.shape[1]):
        total = weights["conv_1d.bias"].expand_as(x[:, t])
        for shift in range(min(config.conv1d_width, t + 1)):
            same_document = (positions[:, t] >= shift)[:, None]
            total = total + torch.where(same_document, x[:, t - shift] * taps[:, -1 - shift], 0.0)
        convolved.append(total)
    x = torch.stack(convolved, dim=1)

    lru = {name.removeprefix("rg_lru."): w for name, w in weights.items()}
    by_head = x.unflatten(-1, (config.num_attention_heads, -1))
    i, r = (
        torch.sigmoid(torch.einsum("blhi,hij->blhj", by_head, lru[f"{gate}_weight"]) + lru[f"{gate}_bias"]).flatten(-2)
        for gate in ("input_gate", "recurrent_gate")
    )
    log_a = -8.0 * r * F.softplus(lru["recurrent_param"])
    start = (positions == 0)[..., None]
    a = torch.where(start, 0.0, log_a.exp())
    multiplier = torch.where(start, 1.0, (-torch.expm1(2 * log_a)).sqrt())
    h, states = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = a[:, t] * h + multiplier[:, t] * i[:, t] * x[:, t]
        states.append(h)
    return _linear(weights, "linear_out", torch.stack(states, dim=1) * gate_branch)


def _attention(weights: Weights, config: RecurrentGemmaConfig, x: Tensor, positions: Tensor) -> Tensor:
    heads, head_dim = config.num_attention_heads, config.head_dim
    q = _rope(_linear(weights, "q_proj", x).unflatten(-1, (heads, head_dim)), positions)
    k = _rope(_linear(weights, "k_proj", x).unflatten(-1, (1, head_dim)), positions)[:, :, 0]
    v = _linear(weights, "v_proj", x)
    index = torch.arange(x.shape[1])
    distance = index[:, None] - index[None, :]
    document = (positions == 0).cumsum(dim=1)
    seen = (distance >= 0) & (distance <= config.attention_window_size)
    seen = seen & (document[:, :, None] == document[:, None, :])
    scores = torch.einsum("blhd,bmd->bhlm", q, k) * head_dim**-0.5
    weighted = scores.masked_fill(~seen[:, None], -torch.inf).softmax(dim=-1)
    return _linear(weights, "o_proj", torch.einsum("bhlm,bmd->blhd", weighted, v).flatten(-2))


def _rope(x: Tensor, positions: Tensor) -> Tensor:
    rotary = x.shape[-1] // 2
    exponents = torch.arange(rotary // 2, dtype=x.dtype) * 2 / rotary
    angles = (positions[..., None] * 10_000.0**-exponents)[:, :, None]
    first, second, rest = x[..., : rotary // 2], x[..., rotary // 2 : rotary], x[..., rotary:]
    sin, cos = angles.sin(), angles.cos()
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)


def _norm(x: Tensor, weight: Tensor, config: RecurrentGemmaConfig) -> Tensor:
    return x * (x.square().mean(dim=-1, keepdim=True) + config.rms_norm_eps).rsqrt() * (1 + weight)


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))
