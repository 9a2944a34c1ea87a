"""Members of the family that are not the demo model: other patterns and widths, and what their configs turn off."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from recurrent_gemma import demo_path
from tests.modeling.models import CONFIGS, tiny_config, tiny_model
from tests.serving.engines import check, expected_logprobs, layers, running, text
from tests.tolerances import bf16_model_tolerance, relative_root_mean_square_error

# Heads of 32: the least that attention on CPU takes.
_WIDE = {"hidden_size": 128, "lru_width": 192, "attention_window_size": 40, "vocab_size": 2500}
_SHAPES = {name: fields for name, fields in CONFIGS.items() if fields.get("conv1d_width", 4) > 1}


def _saved(folder: Path, **fields: Any) -> Path:
    """A checkpoint of random weights with the demo model's tokenizer."""
    tiny_model(tiny_config(**{**_WIDE, **fields})).save_pretrained(folder)
    for file in demo_path().glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize("shape", sorted(_SHAPES))
def test_every_shape_that_has_a_history(shape: str, tmp_path: Path):
    fields = {**_SHAPES[shape], "lru_width": 192 if "lru_width" not in _SHAPES[shape] else 160}
    model = _saved(tmp_path, **fields)
    with running(model, max_num_batched_tokens=64) as engine:
        if any(isinstance(layer, layers.RecurrentBlock) for layer in engine.layers.values()):
            engine.poison()  # keys alone are never NaN
        check(engine.generate([text(100), text(41, start=300), text(7, start=600)]), model)


def test_states_in_the_other_layout(monkeypatch: pytest.MonkeyPatch):
    from vllm.model_executor.layers.mamba.mamba_utils import get_conv_state_layout

    monkeypatch.setenv("VLLM_SSM_CONV_STATE_LAYOUT", "DS")
    get_conv_state_layout.cache_clear()
    try:
        with running(max_num_batched_tokens=64, enable_prefix_caching=True) as engine:
            histories = next(layer.kv_cache[1] for layer in engine.layers.values() if isinstance(layer.kv_cache, tuple))
            assert histories.shape[1:] == (256, 3)
            for _ in range(2):
                check(engine.generate([text(150), text(40, start=300)], prompt_logprobs=None))
    finally:
        get_conv_state_layout.cache_clear()


def test_a_copy_of_the_embeddings_may_be_in_the_file(tmp_path: Path):
    weights = _with_head(tmp_path, lambda embeddings: embeddings.clone())
    assert "lm_head.weight" in weights
    with running(tmp_path) as engine:
        check(engine.generate([text(20)]))


def test_another_head_in_the_file_is_used(tmp_path: Path):
    # Though config.json says that there is none: vLLM looks, and warns.
    _with_head(tmp_path / "tied", lambda embeddings: embeddings * 2)
    untied = shutil.copytree(tmp_path / "tied", tmp_path / "untied")
    config = json.loads((untied / "config.json").read_text())
    (untied / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with running(tmp_path / "tied") as engine:
        check(engine.generate([text(20)]), untied)


def test_a_missing_weight_is_refused(tmp_path: Path):
    weights = _with_head(tmp_path, torch.clone)
    del weights["model.layers.0.temporal_block.rg_lru.recurrent_param"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="recurrent_param"), running(tmp_path):
        pass


def test_bf16_is_as_close_as_roundings_allow():
    with running(dtype="bfloat16") as engine:
        (output,) = engine.generate([text(200)], logprobs=-1, prompt_logprobs=None, max_tokens=4)
    answer = output.outputs[0]
    right = expected_logprobs([*output.prompt_token_ids, *answer.token_ids])[len(output.prompt_token_ids) - 1 : -1]
    given = torch.stack(
        [torch.tensor([entries[token].logprob for token in range(2500)]) for entries in answer.logprobs]
    )
    assert relative_root_mean_square_error(given, right) < bf16_model_tolerance(6)


@pytest.mark.slow
def test_compiled(monkeypatch: pytest.MonkeyPatch):
    # What `vllm serve` does unless told otherwise.
    with running(enforce_eager=False, max_num_batched_tokens=64) as engine:
        engine.poison()
        check(engine.generate([text(150), text(65, start=400), text(1)], max_tokens=40))


def _with_head(folder: Path, head: Any) -> dict[str, torch.Tensor]:
    """The demo model with ``lm_head.weight`` in the file."""
    shutil.copytree(demo_path(), folder, dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = head(weights["model.embed_tokens.weight"])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return weights
