"""What an engine does before it runs: it finds this family by itself, and says no to what it would do wrongly."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from recurrent_gemma import RecurrentGemmaConfig, RecurrentGemmaTokenizer, demo_path
from recurrent_gemma.serving import plugin, register
from recurrent_gemma.serving.limits import DEFAULT_MAX_MODEL_LEN, LARGEST_MAX_MODEL_LEN
from tests.support import require

require("vllm", "serve")


def _config(model: Path | None = None, **options: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(model=str(demo_path() if model is None else model), **options).create_engine_config()


def _copy(folder: Path, **fields: Any) -> Path:
    """The demo model with other fields in its config."""
    shutil.copytree(demo_path(), folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return folder


def test_vllm_finds_our_classes():
    from vllm.tokenizers import get_tokenizer

    config = _config()
    assert type(config.model_config.hf_config) is RecurrentGemmaConfig
    assert config.model_config.architecture == plugin.ARCHITECTURE and config.model_config.is_hybrid
    assert isinstance(get_tokenizer(str(demo_path())), RecurrentGemmaTokenizer)


def test_registering_again_changes_nothing():
    from vllm import ModelRegistry
    from vllm.config import CompilationConfig
    from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum

    def state() -> tuple:
        names = list(MambaAttentionBackendEnum.__members__), list(CompilationConfig._attention_ops)
        return ModelRegistry.models[plugin.ARCHITECTURE], *names

    register()
    before = state()
    register()
    assert state() == before


def test_graphs_are_split_at_the_recurrence():
    from vllm.config import CompilationConfig, CUDAGraphMode

    config = CompilationConfig(mode=3, cudagraph_mode=CUDAGraphMode.PIECEWISE)
    config.set_splitting_ops_for_v1(all2all_backend="naive", data_parallel_size=1)
    assert f"vllm::{plugin.RECURRENCE_OP}" in config.splitting_ops
    assert config.splitting_ops_contain_attention()


@pytest.mark.parametrize(
    ("asked", "given"), [(None, DEFAULT_MAX_MODEL_LEN), (-1, LARGEST_MAX_MODEL_LEN), (300, 300), (10**7, 10**7)]
)
def test_any_longest_sequence_is_allowed(asked: int | None, given: int):
    assert _config(max_model_len=asked).model_config.max_model_len == given


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}, "speculative_config: expected None"),
        ({"enable_lora": True}, "enable_lora: expected False"),
        ({"quantization": "fp8"}, "quantization: expected None"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype: expected 'auto'"),
        ({"mamba_cache_dtype": "float16"}, "mamba_cache_dtype: expected 'auto'"),
        ({"mamba_ssm_cache_dtype": "bfloat16"}, "mamba_ssm_cache_dtype: expected 'auto' or 'float32'"),
        ({"runner": "pooling"}, "runner: expected 'generate'"),
        ({"model_impl": "transformers"}, "model_impl: expected 'auto' or 'vllm'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_supported_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        _config(**options)


def test_all_that_is_not_supported_is_named():
    with pytest.raises(ValueError, match=r"enable_lora[\s\S]*mamba_ssm_cache_dtype"):
        _config(enable_lora=True, mamba_ssm_cache_dtype="bfloat16")


def test_a_config_of_another_family_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="model_type"):
        _config(_copy(tmp_path, model_type="gemma"))


def test_classifiers_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="runner: expected 'generate'"):
        _config(_copy(tmp_path, architectures=["RecurrentGemmaForSequenceClassification"]))


def test_a_window_cannot_be_disabled():
    with pytest.raises((TypeError, ValueError), match="sliding_window"):
        _config(disable_sliding_window=True)
