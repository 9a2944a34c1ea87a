"""The published ``config.json`` files: they load unchanged, and as Transformers' own class reads them."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
from transformers.models.recurrent_gemma.configuration_recurrent_gemma import RecurrentGemmaConfig as InTreeConfig

from recurrent_gemma.configuration import PRESETS, RecurrentGemmaConfig
from tests.support import require

DATA = Path(__file__).parent / "data"
PUBLISHED = ("recurrentgemma-2b", "recurrentgemma-9b")
IN_TREE_FIELDS = [field.name for field in fields(InTreeConfig)]

# What a file holds beside the architecture.
BESIDE = ("architectures", "dtype", "initializer_range", "transformers_version", "_name_or_path")


def architecture(config) -> dict:
    return {name: value for name, value in config.to_dict().items() if name not in BESIDE}


@pytest.mark.parametrize("name", PUBLISHED)
def test_file_equals_preset(name):
    config = RecurrentGemmaConfig.from_pretrained(DATA / f"{name}.json")
    assert architecture(config) == architecture(RecurrentGemmaConfig.from_preset(name))


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_field_of_the_file_is_read(name):
    stored = json.loads((DATA / f"{name}.json").read_text())
    config = RecurrentGemmaConfig.from_pretrained(DATA / f"{name}.json")
    read = {
        **config.to_dict(),
        **config.rope_parameters,
        "_block_types": config.block_types,
        "head_dim": config.head_dim,
        "final_w_init_variance_scale": config.final_w_init_variance_scale,
        "torch_dtype": str(config.dtype).removeprefix("torch."),
        # The version that saved the file, where to_dict() gives the one at work.
        "transformers_version": config.transformers_version,
    }
    assert {field: read[field] for field in stored} == stored


@pytest.mark.parametrize("name", PUBLISHED)
def test_agrees_with_transformers_field_by_field(name):
    path = DATA / f"{name}.json"
    ours, in_tree = RecurrentGemmaConfig.from_pretrained(path), InTreeConfig.from_pretrained(path)
    names = [*IN_TREE_FIELDS, "head_dim", "final_w_init_variance_scale", "num_labels"]
    assert {name: getattr(ours, name) for name in names} == {name: getattr(in_tree, name) for name in names}


def test_defaults_are_those_of_transformers():
    ours, in_tree = RecurrentGemmaConfig(), InTreeConfig()
    assert {name: getattr(ours, name) for name in IN_TREE_FIELDS} == {
        name: getattr(in_tree, name) for name in IN_TREE_FIELDS
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_files_go_between_both_classes(name, tmp_path):
    path = DATA / f"{name}.json"
    InTreeConfig.from_pretrained(path).save_pretrained(tmp_path / "in_tree")
    RecurrentGemmaConfig.from_pretrained(path).save_pretrained(tmp_path / "ours")
    ours = RecurrentGemmaConfig.from_pretrained(tmp_path / "in_tree")
    in_tree = InTreeConfig.from_pretrained(tmp_path / "ours")
    assert architecture(ours) == architecture(RecurrentGemmaConfig.from_pretrained(path))
    # Transformers' class keeps the old name of the pattern beside the new one.
    expected = architecture(InTreeConfig.from_pretrained(path))
    assert {**architecture(in_tree), "_block_types": expected["_block_types"]} == expected


def test_numbers_given_as_integers_are_saved_as_transformers_reads_them(tmp_path):
    RecurrentGemmaConfig(logits_soft_cap=30, attention_dropout=0, w_init_variance_scale=1).save_pretrained(tmp_path)
    assert InTreeConfig.from_pretrained(tmp_path).logits_soft_cap == 30.0


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_the_source_packages(name):
    common = require("recurrentgemma.common")
    presets = {
        "recurrentgemma-2b": common.Preset.RECURRENT_GEMMA_2B_V1,
        "recurrentgemma-9b": common.Preset.RECURRENT_GEMMA_9B_V1,
        "griffin-paper-7b": common.Preset.GRIFFIN_PAPER_7B,
        "hawk-paper-7b": common.Preset.HAWK_PAPER_7B,
    }
    source = presets[name].config_dict
    config = RecurrentGemmaConfig.from_preset(name)
    kinds = {"linear_attention": "RECURRENT", "sliding_attention": "ATTENTION"}
    assert config.hidden_size == source["width"]
    assert config.mlp_width == source["mlp_expanded_width"]
    assert config.num_attention_heads == source["num_heads"]
    assert config.lru_width == (source["lru_width"] or source["width"])
    assert config.attention_window_size == source["attention_window_size"]
    assert config.embeddings_scale_by_sqrt_dim == source["embeddings_scale_by_sqrt_dim"]
    assert config.final_logit_softcapping == (source["logits_soft_cap"] or None)
    assert [kinds[kind] for kind in config.layers_block_type] == [block.name for block in source["block_types"]]
