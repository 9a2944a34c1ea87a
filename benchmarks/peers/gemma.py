"""Gemma, with full attention in every layer, and Gemma 3, with five local layers to a global one."""

from typing import Any

from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GemmaConfig, GemmaForCausalLM

from benchmarks.models import Size
from benchmarks.peers.contestant import Contestant
from benchmarks.peers.transformers_model import NO_SPECIAL_IDS, TransformersModel, with_random_weights

_LOCAL_TO_GLOBAL = 5


def build_gemma(size: Size, ours: TransformersModel) -> Contestant:
    """``GemmaForCausalLM``: the architecture that RecurrentGemma's model card compares itself with."""
    return with_random_weights(GemmaForCausalLM, GemmaConfig(**_shape(size), hidden_act="gelu_pytorch_tanh"))


def build_gemma_3(size: Size, ours: TransformersModel) -> Contestant:
    """``Gemma3ForCausalLM`` (text). Its local layers have our window; the last layer is global at any depth."""
    last = size.num_hidden_layers - 1
    kinds = [
        "full_attention" if i == last or (i + 1) % (_LOCAL_TO_GLOBAL + 1) == 0 else "sliding_attention"
        for i in range(size.num_hidden_layers)
    ]
    config = Gemma3TextConfig(
        **_shape(size),
        layer_types=kinds,
        sliding_window=ours.model.config.attention_window_size,
        query_pre_attn_scalar=size.head_dim,
    )
    return with_random_weights(Gemma3ForCausalLM, config)


def _shape(size: Size) -> dict[str, Any]:
    return {
        "hidden_size": size.hidden_size,
        "intermediate_size": size.mlp_width,
        "num_hidden_layers": size.num_hidden_layers,
        "num_attention_heads": size.num_attention_heads,
        "num_key_value_heads": 1,
        "head_dim": size.head_dim,
        "vocab_size": size.vocab_size,
        **NO_SPECIAL_IDS,
    }
