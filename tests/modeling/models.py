"""Small models for tests, no part of which is degenerate."""

from typing import Any

import torch
from torch import nn

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM
from recurrent_gemma.modeling.layers import RecurrentGemmaAttention, RecurrentGemmaRglru, RecurrentGemmaRMSNorm

WINDOW = 7  # of ``tiny_config()``
# Shapes of the family, as fields that differ from ``tiny_config()``.
CONFIGS: dict[str, dict[str, Any]] = {
    "shipped pattern": {},
    "all recurrent": {"block_types": ["recurrent"], "num_hidden_layers": 2},
    "all attention": {"block_types": ["attention"], "num_hidden_layers": 2, "num_key_value_heads": 4},
    "one recurrent layer": {"num_hidden_layers": 1},
    "one attention layer": {"num_hidden_layers": 1, "block_types": ["attention"]},
    "wide recurrence, two key heads": {"lru_width": 80, "num_key_value_heads": 2},
    "odd pattern": {"block_types": ["attention", "recurrent", "recurrent", "recurrent"], "num_hidden_layers": 6},
    "no history, window of one": {"conv1d_width": 1, "attention_window_size": 1},
    "no scale, no cap, biases": {
        "embeddings_scale_by_sqrt_dim": False,
        "logits_soft_cap": None,
        "attention_bias": True,
        "tie_word_embeddings": False,
    },
}


def tiny_config(**overrides: Any) -> RecurrentGemmaConfig:
    """Config of a model of five layers with a window of 7; ``overrides`` are fields that differ."""
    fields = {
        "vocab_size": 97,
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "attention_window_size": WINDOW,
        "lru_width": 48,
    }
    return RecurrentGemmaConfig(**{**fields, **overrides})


def tiny_model(config: RecurrentGemmaConfig | None = None, seed: int = 0) -> RecurrentGemmaForCausalLM:
    """An fp32 language model of ``config`` (default: ``tiny_config()``) in eval mode, with the seed's weights.

    Initialization alone would hide mistakes: norm weights and biases are zero there, embeddings and attention logits
    small, and the recurrence remembers about as long in every channel.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RecurrentGemmaForCausalLM(tiny_config() if config is None else config)
        make_nondegenerate(model)
    return model.eval()


@torch.no_grad()
def make_nondegenerate(model: nn.Module) -> None:
    """Draw norm weights, biases and the recurrence's a anew (global generator), and enlarge what hardly tells."""
    for module in model.modules():
        if isinstance(module, RecurrentGemmaRMSNorm):
            module.weight.uniform_(-0.5, 0.5)
        elif isinstance(module, RecurrentGemmaAttention):
            module.q_proj.weight.mul_(1.5)
            module.k_proj.weight.mul_(1.5)
        elif isinstance(module, RecurrentGemmaRglru):
            # a = exp(-8 * softplus(param)) at an open recurrence gate: from 0.02 to 0.9998.
            module.recurrent_param.uniform_(-10.5, -0.5)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.uniform_(-0.3, 0.3)
        elif name.endswith(("embed_tokens.weight", "lm_head.weight")):
            # Logits reach into the soft cap. A tied head is the embeddings, which are listed once.
            parameter.mul_(4.0)
        elif name.endswith(("conv_1d.weight", "gate_weight")):
            # The convolution, which is drawn small, reaches the gates and opens and closes them.
            parameter.mul_(4.0)
        elif name.endswith(("o_proj.weight", "linear_out.weight", "down_proj.weight")):
            # Every block tells in the residual stream, beside the embeddings.
            parameter.mul_(2.0)
