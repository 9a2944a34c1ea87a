"""Hyper-parameters of the published models, in the field names of ``RecurrentGemmaConfig``.

Source: ``Preset.config_dict`` in ``recurrentgemma/common.py`` of PyPI ``recurrentgemma`` 1.0.1. DeepMind's
``mlp_expanded_width`` is the MLP's true width; the checkpoint field ``intermediate_size`` is twice that.
"""

from typing import Any

_GRIFFIN_PATTERN = ("recurrent", "recurrent", "attention")

PRESETS: dict[str, dict[str, Any]] = {
    "recurrentgemma-2b": {
        "hidden_size": 2560,
        "intermediate_size": 2 * 3 * 2560,
        "num_hidden_layers": 26,
        "num_attention_heads": 10,
        "num_key_value_heads": 1,
        "lru_width": 2560,
        "attention_window_size": 2048,
        "block_types": _GRIFFIN_PATTERN,
        "embeddings_scale_by_sqrt_dim": True,
        "logits_soft_cap": 30.0,
    },
    "recurrentgemma-9b": {
        "hidden_size": 4096,
        "intermediate_size": 2 * 3 * 4096,
        "num_hidden_layers": 38,
        "num_attention_heads": 16,
        "num_key_value_heads": 1,
        "lru_width": 4096,
        "attention_window_size": 2048,
        "block_types": _GRIFFIN_PATTERN,
        "embeddings_scale_by_sqrt_dim": True,
        "logits_soft_cap": 30.0,
    },
    "griffin-paper-7b": {
        "hidden_size": 4096,
        "intermediate_size": 2 * 3 * 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 1,
        "lru_width": 5632,
        "attention_window_size": 1024,
        "block_types": _GRIFFIN_PATTERN,
        "embeddings_scale_by_sqrt_dim": False,
        "logits_soft_cap": None,
    },
    "hawk-paper-7b": {
        "hidden_size": 4096,
        "intermediate_size": 2 * 3 * 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 1,
        "lru_width": 5632,
        "attention_window_size": 1024,
        "block_types": ("recurrent",),
        "embeddings_scale_by_sqrt_dim": False,
        "logits_soft_cap": None,
    },
}
