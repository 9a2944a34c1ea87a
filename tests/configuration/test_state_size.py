"""Bytes of state: the published figures, and equality with what the caches of real models hold."""

import pytest
import torch
from transformers import DynamicCache, GemmaConfig, GemmaForCausalLM

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.configuration.state_size import StateSize, kv_cache_bytes, state_bytes
from recurrent_gemma.modeling import RecurrentGemmaCache, RecurrentGemmaModel
from recurrent_gemma.modeling.compat import CACHE_NAME

WINDOW = 8


def _config(**fields) -> RecurrentGemmaConfig:
    small = {
        "num_hidden_layers": 5,
        "vocab_size": 32,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "lru_width": 48,
        "attention_window_size": WINDOW,
        "conv1d_width": 3,
    }
    return RecurrentGemmaConfig(**small | fields)


def test_2b_and_9b_in_bfloat16_by_hand():
    small = RecurrentGemmaConfig.from_preset("recurrentgemma-2b")
    assert state_bytes(small, dtype=torch.bfloat16) == StateSize(
        recurrent=18 * 2560 * 4, conv=18 * 3 * 2560 * 2, window=8 * 2048 * 2 * 256 * 2
    )
    large = RecurrentGemmaConfig.from_preset("recurrentgemma-9b")
    assert state_bytes(large, dtype=torch.bfloat16) == StateSize(
        recurrent=26 * 4096 * 4, conv=26 * 3 * 4096 * 2, window=12 * 2048 * 2 * 256 * 2
    )
    assert kv_cache_bytes(small, 8192, dtype=torch.bfloat16) == 26 * 8192 * 2 * 256 * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 2, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"block_types": ["recurrent"]},
        {"block_types": ["attention"]},
        {"num_key_value_heads": 1, "lru_width": None, "conv1d_width": 4},
    ],
)
def test_equals_what_the_cache_holds(fields: dict, length: int, dtype: torch.dtype):
    config = _config(**fields)
    model = RecurrentGemmaModel(config).to(dtype).eval()
    cache = RecurrentGemmaCache(config)
    with torch.no_grad():
        model(torch.ones(1, length, dtype=torch.long), past_key_values=cache)
    held = sum(tensor.nbytes for layer in cache.layers for tensor in layer.load())
    assert held == state_bytes(config, length=length, dtype=dtype).total


def test_stays_the_same_once_the_window_is_full():
    config = _config()
    full = state_bytes(config, dtype=torch.float32)
    sizes = [state_bytes(config, length=length, dtype=torch.float32) for length in (WINDOW, WINDOW + 1, 10**9)]
    assert sizes == [full] * 3
    assert state_bytes(config, length=WINDOW - 1, dtype=torch.float32).window < full.window
    assert state_bytes(config, length=0, dtype=torch.float32).window == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kv_cache_equals_what_gemma_holds(dtype: torch.dtype):
    config = _config()
    gemma = GemmaForCausalLM(
        GemmaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.mlp_width,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
        )
    ).to(dtype)
    cache = DynamicCache(config=gemma.config)
    length = 3 * WINDOW
    with torch.no_grad():
        gemma(torch.ones(1, length, dtype=torch.long), **{CACHE_NAME: cache})
    held = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    assert held == kv_cache_bytes(config, length, dtype=dtype)


def test_dtype_defaults_to_the_configs():
    for field, dtype in ((None, torch.float32), ("bfloat16", torch.bfloat16)):
        config = _config(dtype=field)
        assert state_bytes(config) == state_bytes(config, dtype=dtype)
        assert kv_cache_bytes(config, 5) == kv_cache_bytes(config, 5, dtype=dtype)
    assert state_bytes(_config()).total != state_bytes(_config(dtype="bfloat16")).total


def test_negative_lengths_are_refused():
    with pytest.raises(ValueError, match="length: expected at least 0, got -1"):
        state_bytes(_config(), length=-1)
    with pytest.raises(ValueError, match="length: expected at least 0, got -1"):
        kv_cache_bytes(_config(), -1)
