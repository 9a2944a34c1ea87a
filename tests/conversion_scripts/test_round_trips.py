"""There and back is bit for bit, and every implementation gives the same logits from what is written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.recurrent_gemma import RecurrentGemmaForCausalLM as InTreeRecurrentGemmaForCausalLM

from recurrent_gemma import PRESETS, RecurrentGemmaConfig, RecurrentGemmaForCausalLM
from recurrent_gemma.conversion_scripts import convert
from recurrent_gemma.conversion_scripts.checkpoints import open_checkpoint
from tests.conversion_scripts.checkpoints import (
    ATTENTION_ONLY,
    any_values,
    flattened,
    jax_logits,
    jax_shapes,
    load_orbax,
    model_values,
    open_fields,
    same_bits,
    save_orbax,
    save_torch,
    small_config,
    torch_model,
)
from tests.modeling.test_interchange import skip_if_transformers_rotates_wrongly
from tests.support import require
from tests.tolerances import LOGITS_VS_JAX

require("recurrentgemma")

CONFIGS = {name: small_config(name) for name in PRESETS}
CONFIGS["attention only"] = RecurrentGemmaConfig(**ATTENTION_ONLY)
DTYPES = [torch.float32, torch.bfloat16]


def _params(config: RecurrentGemmaConfig, dtype: torch.dtype, values: Any = any_values) -> dict[str, torch.Tensor]:
    return {name: values(shape, dtype) for name, shape in jax_shapes(config).items()}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_orbax_and_back(name: str, dtype: torch.dtype, tmp_path: Path):
    config = CONFIGS[name]
    params = _params(config, dtype)
    source = save_orbax(tmp_path / "source", params)
    result = convert(source, tmp_path / "hf", **open_fields(config), max_shard_size="20KB")
    assert result.written
    assert (result.plan.source_kind, result.plan.target_kind) == ("flax", "hf")
    assert len(result.plan.shards) > 1 or name == "attention only"
    convert(tmp_path / "hf", tmp_path / "back", to="flax")
    back = load_orbax(tmp_path / "back")
    assert back.keys() == params.keys()
    assert [name for name, value in params.items() if not same_bits(value, back[name])] == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_torch_and_back(name: str, dtype: torch.dtype, tmp_path: Path):
    config = CONFIGS[name]
    source = save_torch(tmp_path / "source.pt", _params(config, dtype))
    convert(source, tmp_path / "hf", **open_fields(config))
    result = convert(tmp_path / "hf", tmp_path / "back.pt")
    assert (result.plan.source_kind, result.plan.target_kind) == ("hf", "torch")
    expected = {name.removeprefix("params."): value for name, value in torch.load(source, weights_only=True).items()}
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert back.keys() == expected.keys()
    assert [name for name, value in expected.items() if not same_bits(value, back[name])] == []


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_deepminds_kinds_without_a_config(dtype: torch.dtype, tmp_path: Path):
    params = _params(CONFIGS["griffin-paper-7b"], dtype)
    convert(save_orbax(tmp_path / "source", params), tmp_path / "there.pt")
    result = convert(tmp_path / "there.pt", tmp_path / "back", to="flax")
    assert result.plan.config is None
    back = load_orbax(tmp_path / "back")
    assert [name for name, value in params.items() if not same_bits(value, back[name])] == []
    # As DeepMind's own converter has them.
    expected = torch.load(save_torch(tmp_path / "expected.pt", params), weights_only=True)
    there = torch.load(tmp_path / "there.pt", weights_only=True)
    assert [name for name, value in there.items() if not same_bits(value, expected[f"params.{name}"])] == []


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_logits_everywhere(name: str, tmp_path: Path):
    config = CONFIGS[name]
    source = save_orbax(tmp_path / "source", _params(config, torch.float32, model_values))
    convert(source, tmp_path / "hf", **open_fields(config))
    convert(tmp_path / "hf", tmp_path / "flax", to="flax")
    convert(tmp_path / "flax", tmp_path / "weights.pt")

    ids = torch.randint(config.vocab_size, (2, 3 * config.attention_window_size + 1))
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    model, info = RecurrentGemmaForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.attention_window_size == config.attention_window_size
    with torch.no_grad():
        ours = model(ids).logits

    params = require("orbax.checkpoint").PyTreeCheckpointer().restore(tmp_path / "flax")
    theirs = jax_logits(config, params, ids, positions)
    assert (ours - theirs).abs().max() < LOGITS_VS_JAX

    reference = torch_model(config)
    reference.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    with torch.no_grad():
        logits, _ = reference(ids, positions)
    assert (ours - logits).abs().max() < LOGITS_VS_JAX


# Transformers' own class knows no model of the paper: it always scales embeddings and always caps logits.
@pytest.mark.parametrize("preset", ["recurrentgemma-2b", "recurrentgemma-9b"])
def test_transformers_own_class_loads_what_is_written(preset: str, tmp_path: Path):
    config = small_config(preset)
    source = save_orbax(tmp_path / "source", _params(config, torch.float32, model_values))
    convert(source, tmp_path / "hf", **open_fields(config), max_shard_size="50KB")
    model, info = InTreeRecurrentGemmaForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    # And what it writes is a source.
    model.save_pretrained(tmp_path / "in_tree")
    convert(tmp_path / "in_tree", tmp_path / "back", to="flax")
    assert flattened(load_orbax(tmp_path / "back")).keys() == jax_shapes(config).keys()
    original, back = open_checkpoint(source), open_checkpoint(tmp_path / "back")
    assert [name for name in original.tensors if not same_bits(original.read(name), back.read(name))] == []


@pytest.mark.parametrize("preset", ["recurrentgemma-2b", "recurrentgemma-9b"])
def test_transformers_own_class_gives_the_same_logits_within_the_window(preset: str, tmp_path: Path):
    config = small_config(preset)
    skip_if_transformers_rotates_wrongly(config)
    source = save_orbax(tmp_path / "source", _params(config, torch.float32, model_values))
    convert(source, tmp_path / "hf", **open_fields(config))
    theirs, ours = (
        model_class.from_pretrained(tmp_path / "hf")
        for model_class in (InTreeRecurrentGemmaForCausalLM, RecurrentGemmaForCausalLM)
    )
    ids = torch.randint(config.vocab_size, (1, config.attention_window_size))
    with torch.no_grad():
        assert (theirs(ids, use_cache=False).logits - ours(ids).logits).abs().max() < LOGITS_VS_JAX


@pytest.mark.parametrize("source_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_rounds_as_torch_does(source_dtype: str, dtype: str, tmp_path: Path):
    config = CONFIGS["recurrentgemma-2b"]
    params = _params(config, getattr(torch, source_dtype), model_values)
    source = save_orbax(tmp_path / "source", params)
    convert(source, tmp_path / "hf", **open_fields(config), dtype=dtype)
    convert(source, tmp_path / "flax", to="flax", dtype=dtype)
    model = RecurrentGemmaForCausalLM.from_pretrained(tmp_path / "hf")
    assert model.dtype == getattr(torch, dtype)
    back = load_orbax(tmp_path / "flax")
    expected = {name: value.to(getattr(torch, dtype)) for name, value in params.items()}
    assert [name for name, value in expected.items() if not same_bits(value, back[name])] == []
    embedding = model.get_input_embeddings().weight
    assert same_bits(embedding.detach(), expected["embedder/input_embedding"])


@pytest.mark.parametrize("changes", [{"attention_bias": True}, {"tie_word_embeddings": False}, {}])
def test_from_one_transformers_directory_to_another(changes: dict, tmp_path: Path):
    config = RecurrentGemmaConfig(**{**CONFIGS["recurrentgemma-2b"].to_dict(), **changes})
    model = RecurrentGemmaForCausalLM(config)
    model.save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "tokenizer_config.json").write_text("{}")
    (tmp_path / "source" / "modeling_theirs.py").write_text("")
    fields = json.loads((tmp_path / "source" / "config.json").read_text())
    fields |= {"auto_map": {"AutoModel": "modeling_theirs.Model"}, "torch_dtype": "auto"}
    (tmp_path / "source" / "config.json").write_text(json.dumps(fields))
    result = convert(tmp_path / "source", tmp_path / "target", to="hf", dtype=torch.bfloat16, max_shard_size=30_000)
    assert result.plan.notes == ("not taken along: modeling_theirs.py",)
    assert "auto_map" not in json.loads((tmp_path / "target" / "config.json").read_text())
    again = RecurrentGemmaForCausalLM.from_pretrained(tmp_path / "target")
    assert again.dtype == torch.bfloat16
    expected = model.to(torch.bfloat16).state_dict()
    assert [name for name, value in again.state_dict().items() if not same_bits(value, expected[name])] == []
    names = {path.name for path in (tmp_path / "target").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer_config.json"} < names
    assert again.config.to_diff_dict().items() >= {**changes, "hidden_size": 40}.items()
