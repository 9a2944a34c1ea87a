"""LFM2, a current hybrid: gated short convolutions and, in every third layer here, full attention.

Of the current hybrids it is the one that loses least without CUDA kernels: its convolution is then one depthwise
convolution of torch. Falcon-H1 (Mamba-2) and Qwen3-Next (gated delta rule) fall back to reference code for the whole
recurrence, and beating that would say nothing.
"""

from transformers import Lfm2Config, Lfm2ForCausalLM

from benchmarks.models import Size
from benchmarks.peers.contestant import Contestant
from benchmarks.peers.transformers_model import NO_SPECIAL_IDS, TransformersModel, with_random_weights


def build_lfm2(size: Size, ours: TransformersModel) -> Contestant:
    """``Lfm2ForCausalLM`` with our pattern of layers: (convolution, convolution, attention)."""
    pattern = ("conv", "conv", "full_attention")
    config = Lfm2Config(
        hidden_size=size.hidden_size,
        intermediate_size=size.mlp_width,
        block_auto_adjust_ff_dim=False,
        num_hidden_layers=size.num_hidden_layers,
        num_attention_heads=size.num_attention_heads,
        num_key_value_heads=1,
        layer_types=[pattern[i % len(pattern)] for i in range(size.num_hidden_layers)],
        vocab_size=size.vocab_size,
        **NO_SPECIAL_IDS,
    )
    return with_random_weights(Lfm2ForCausalLM, config)
