"""What cannot be converted is refused before anything is written, and every reason is named."""

import json
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from recurrent_gemma import RecurrentGemmaConfig, RecurrentGemmaForCausalLM
from recurrent_gemma.conversion_scripts import ConversionError, convert
from tests.conversion_scripts.checkpoints import model_values, open_fields, small_config, torch_shapes
from tests.support import require

CONFIG = small_config("recurrentgemma-2b")
OPTIONS = open_fields(CONFIG)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """DeepMind's PyTorch parameters of a model."""
    require("recurrentgemma")
    return {name: model_values(shape, torch.float32) for name, shape in torch_shapes(CONFIG).items()}


def _refused(source: Path, target: Path, error: type[Exception] = ConversionError, **options: Any) -> str:
    """The message of the refusal; nothing is written."""
    before = sorted(target.parent.rglob("*"))
    with pytest.raises(error) as raised:
        convert(source, target, **options)
    assert sorted(target.parent.rglob("*")) == before
    return str(raised.value)


def _save(path: Path, weights: dict[str, Any]) -> Path:
    torch.save(weights, path)
    return path


def test_everything_that_is_wrong_is_named_at_once(weights: dict, tmp_path: Path):
    changed = dict(weights)
    del changed["blocks.1.mlp_block.ffw_up.w"], changed["final_norm.scale"]
    changed["blocks.0.recurrent_block.linear_x.weight"] = torch.zeros(40, 41)
    changed["blocks.0.recurrent_block.conv_1d.w"] = torch.zeros(40, 4)
    changed["blocks.2.attention_block.proj_k.weight"] = torch.zeros(8, 40)
    changed["blocks.3.temporal_pre_norm.scale"] = torch.zeros(40, dtype=torch.int32)
    changed["blocks.4.temporal_pre_norm.scale"] = changed["blocks.4.temporal_pre_norm.scale"].double()
    changed["blocks.0.extra"] = torch.zeros(1)
    changed["step"] = torch.zeros(())
    message = _refused(_save(tmp_path / "a.pt", changed), tmp_path / "hf", **OPTIONS)
    expected = [
        "missing: blocks.1.mlp_block.ffw_up.w, expected shape (2, 40, 120).",
        "missing: final_norm.scale, expected shape (40,).",
        "misshapen: blocks.0.recurrent_block.linear_x.weight, expected shape (40, 40), got (40, 41).",
        "misshapen: blocks.0.recurrent_block.conv_1d.w, expected shape (4, 40), got (40, 4).",
        "misshapen: blocks.2.attention_block.proj_k.weight, expected shape (4, 40), got (8, 40).",
        "wrong dtype: blocks.3.temporal_pre_norm.scale, expected float32",
        "wrong dtype: blocks.4.temporal_pre_norm.scale, expected float32",
        "unexpected: blocks.0.extra, float32 (1,).",
        "unexpected: step, float32 ().",
    ]
    assert [line for line in expected if line not in message] == []
    assert message.count("\n") == len(expected)


def test_wrong_dtypes_are_converted_if_asked_and_integers_are_not(weights: dict, tmp_path: Path):
    mixed = weights | {"final_norm.scale": weights["final_norm.scale"].double()}
    mixed["blocks.0.channel_pre_norm.scale"] = mixed["blocks.0.channel_pre_norm.scale"].bfloat16()
    source = _save(tmp_path / "a.pt", mixed)
    assert _refused(source, tmp_path / "hf", **OPTIONS).count("wrong dtype") == 2
    convert(source, tmp_path / "hf", dtype="float32", **OPTIONS)
    assert {value.dtype for value in load_file(tmp_path / "hf" / "model.safetensors").values()} == {torch.float32}
    doubles = _save(tmp_path / "doubles.pt", {name: value.double() for name, value in weights.items()})
    message = _refused(doubles, tmp_path / "other", **OPTIONS)
    assert "wrong dtype: most entries are float64, expected one of float32" in message and message.count("\n") == 0
    convert(doubles, tmp_path / "from_doubles", dtype="float32", **OPTIONS)
    mixed["final_norm.scale"] = torch.ones(40, dtype=torch.int64)
    source = _save(tmp_path / "b.pt", mixed)
    assert "wrong dtype: final_norm.scale" in _refused(source, tmp_path / "other", dtype="float32", **OPTIONS)


def test_values_that_are_not_finite_are_named(weights: dict, tmp_path: Path):
    changed = dict(weights)
    for name, value in {
        "embedder.input_embedding": float("nan"),
        "blocks.4.recurrent_block.rg_lru.a_param": float("inf"),
        "blocks.0.mlp_block.ffw_up.b": float("-inf"),
    }.items():
        changed[name] = changed[name].clone()
        changed[name].view(-1)[-1] = value
    message = _refused(_save(tmp_path / "a.pt", changed), tmp_path / "hf", **OPTIONS)
    assert message.count("not finite: ") == 3
    assert "not finite: blocks.4.recurrent_block.rg_lru.a_param, 1 of its values." in message


def test_values_beyond_the_new_dtype_are_named(weights: dict, tmp_path: Path):
    changed = dict(weights)
    changed["final_norm.scale"] = torch.full_like(changed["final_norm.scale"], 1e5)
    source = _save(tmp_path / "a.pt", changed)
    message = _refused(source, tmp_path / "hf", dtype="float16", **OPTIONS)
    assert "too large for float16: final_norm.scale, 40 of its values." in message
    convert(source, tmp_path / "hf", dtype="bfloat16", **OPTIONS)


def test_a_block_that_is_missing_is_named(weights: dict, tmp_path: Path):
    changed = {name: value for name, value in weights.items() if not name.startswith("blocks.1.")}
    message = _refused(_save(tmp_path / "a.pt", changed), tmp_path / "hf", **OPTIONS)
    assert "missing: blocks.1." in message and message.count("\n") == 0


class _Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_file_with_code_in_it_is_refused_and_not_run(weights: dict, tmp_path: Path):
    torch.save(weights | {"code": _Code(tmp_path / "ran")}, tmp_path / "a.pt")
    message = _refused(tmp_path / "a.pt", tmp_path / "hf", **OPTIONS)
    assert "run code" in message and "weights_only=False" in message
    assert not (tmp_path / "ran").exists()
    # The test can fail: this is what the file does.
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"hello", pickle.dumps({"a": 1}), b"PK\x03\x04 but no archive"])
def test_what_torch_save_did_not_write_is_refused(content: bytes, tmp_path: Path):
    (tmp_path / "a.pt").write_bytes(content)
    assert "torch.save" in _refused(tmp_path / "a.pt", tmp_path / "hf", **OPTIONS)


def test_a_truncated_torch_file_is_refused(weights: dict, tmp_path: Path):
    content = _save(tmp_path / "a.pt", weights).read_bytes()
    for length in (len(content) // 2, len(content) - 1):
        (tmp_path / "a.pt").write_bytes(content[:length])
        assert "truncated" in _refused(tmp_path / "a.pt", tmp_path / "hf", **OPTIONS)


def test_a_compressed_torch_file_is_refused(weights: dict, tmp_path: Path):
    _save(tmp_path / "stored.pt", weights)
    with (
        zipfile.ZipFile(tmp_path / "stored.pt") as stored,
        zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in stored.namelist():
            archive.writestr(name, stored.read(name))
    assert torch.load(tmp_path / "a.pt", weights_only=True).keys() == weights.keys()
    assert "compressed" in _refused(tmp_path / "a.pt", tmp_path / "hf", **OPTIONS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "dictionary of tensors by name, got list"),
        ({0: torch.zeros(1)}, "dictionary of tensors by name"),
        ({"model_state_dict": {"a": torch.zeros(1)}}, "model_state_dict: expected a dense tensor, got dict"),
        (
            {"embedder.input_embedding": torch.zeros(2, 2).to_sparse()},
            "embedder.input_embedding: expected a dense tensor",
        ),
        ({}, "expected the parameters of DeepMind's PyTorch model"),
        ({"model.embed_tokens.weight": torch.zeros(2, 2)}, "Transformers' names"),
    ],
)
def test_files_of_something_else_are_refused(content: Any, message: str, tmp_path: Path):
    assert message in _refused(_save(tmp_path / "a.pt", content), tmp_path / "hf", **OPTIONS)


def test_fields_that_no_shape_gives_have_to_be_given(weights: dict, tmp_path: Path):
    source = _save(tmp_path / "a.pt", weights)
    message = _refused(source, tmp_path / "hf")
    assert message.startswith("attention_window_size, embeddings_scale_by_sqrt_dim, logits_soft_cap: ")
    message = _refused(source, tmp_path / "hf", attention_window_size=8, logits_soft_cap=0.0)
    assert message.startswith("embeddings_scale_by_sqrt_dim: ")
    message = _refused(source, tmp_path / "hf", preset="2b")
    assert "hidden_size: expected 2560 (preset recurrentgemma-2b), got 40." in message
    assert "attention_window_size: expected" in _refused(
        source, tmp_path / "hf", **{**OPTIONS, "attention_window_size": 0}
    )


def test_a_published_models_shapes_are_recognized(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: dict):
    from recurrent_gemma.conversion_scripts import architecture

    fields = {name: getattr(CONFIG, name) for name in architecture.PRESETS["recurrentgemma-2b"]}
    monkeypatch.setitem(architecture.PRESETS, "recurrentgemma-2b", fields)
    source = _save(tmp_path / "a.pt", weights)
    assert "The shapes are those of recurrentgemma-2b." in _refused(source, tmp_path / "hf")
    for preset in ("2b", "recurrentgemma-2b"):
        convert(source, tmp_path / preset, preset=preset)
        assert RecurrentGemmaConfig.from_pretrained(tmp_path / preset).attention_window_size == 8
    convert(source, tmp_path / "other", preset="2b", attention_window_size=5, logits_soft_cap=0)
    config = RecurrentGemmaConfig.from_pretrained(tmp_path / "other")
    assert (config.attention_window_size, config.logits_soft_cap) == (5, None)
    assert config.embeddings_scale_by_sqrt_dim is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "jax"}, "to: expected one of flax, torch, hf, got 'jax'"),
        ({}, "to: expected a kind"),
        ({"to": "torch"}, r"target: expected a file named \*\.pt"),
        ({"to": "flax", "preset": "2b"}, "preset: expected None for a Transformers directory"),
        ({"to": "flax", "logits_soft_cap": 0.0}, "logits_soft_cap: expected None for a Transformers directory"),
        ({"to": "flax", "max_shard_size": "1GB"}, "max_shard_size: expected None for the kind flax"),
        ({"to": "flax", "tokenizer": "x"}, "tokenizer: expected None for the kind flax"),
        ({"to": "hf", "max_shard_size": "many"}, "max_shard_size: expected bytes"),
        ({"to": "hf", "max_shard_size": 0}, "max_shard_size: expected bytes"),
        ({"to": "hf", "max_shard_size": "0GB"}, "max_shard_size: expected bytes"),
        ({"to": "hf", "max_shard_size": "-5GB"}, "max_shard_size: expected bytes"),
        ({"to": "hf", "dtype": "int8"}, "dtype: expected one of float32, bfloat16, float16, got 'int8'"),
        ({"to": "hf", "dtype": torch.float64}, "dtype: expected one of"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict, message: str, directory: Path, tmp_path: Path):
    assert re.match(message, _refused(directory, tmp_path / "target", ValueError, **options))


def test_options_without_effect_are_refused(weights: dict, tmp_path: Path):
    source = _save(tmp_path / "a.pt", weights)
    message = _refused(source, tmp_path / "b", ValueError, to="flax", attention_window_size=8)
    assert message.startswith("attention_window_size: expected None")
    message = _refused(source, tmp_path / "b", ValueError, to="flax", preset="3b")
    assert message.startswith("preset: expected 2b, 9b, or a name of")
    # A preset says what the shapes have to be.
    assert "hidden_size" in _refused(source, tmp_path / "b", to="flax", preset="2b")


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True},
        {"tie_word_embeddings": False},
        {"num_key_value_heads": 5},
        {"conv1d_width": 3},
        {"rms_norm_eps": 1e-5},
        {"hidden_activation": "relu"},
        {"rope_parameters": {"rope_theta": 5000.0, "partial_rotary_factor": 0.5, "rope_type": "default"}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_models_that_deepminds_code_cannot_be_are_refused(changes: dict, tmp_path: Path):
    config = RecurrentGemmaConfig(**{**CONFIG.to_dict(), **changes})
    RecurrentGemmaForCausalLM(config).save_pretrained(tmp_path / "source")
    for to, target in (("flax", "flax"), ("torch", "weights.pt")):
        message = _refused(tmp_path / "source", tmp_path / target, to=to)
        assert next(iter(changes)) in message and "DeepMind" in message
    convert(tmp_path / "source", tmp_path / "copy", to="hf")


@pytest.mark.parametrize(
    "changes",
    [
        {"block_types": ["recurrent"], "rope_parameters": {"rope_theta": 5000.0}, "num_key_value_heads": 5},
        {"block_types": ["attention"], "conv1d_width": 3},
    ],
)
def test_fields_of_blocks_that_are_not_there_do_not_matter(changes: dict, tmp_path: Path):
    config = RecurrentGemmaConfig(**{**CONFIG.to_dict(), "num_attention_heads": 5, "layer_types": None, **changes})
    RecurrentGemmaForCausalLM(config).save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "weights.pt")


def test_transformers_directories_with_errors_are_refused(directory: Path, tmp_path: Path):
    source = tmp_path / "source"
    shutil.copytree(directory, source)
    weights = load_file(directory / "model.safetensors")
    content = (source / "model.safetensors").read_bytes()

    renamed = dict(weights)
    renamed["model.layers.0.temporal_block.linear_z.weight"] = renamed.pop(
        "model.layers.0.temporal_block.linear_x.weight"
    )
    save_file(renamed, source / "model.safetensors")
    message = _refused(source, tmp_path / "flax", to="flax")
    assert "missing: model.layers.0.temporal_block.linear_x.weight" in message
    assert "unexpected: model.layers.0.temporal_block.linear_z.weight" in message

    (source / "model.safetensors").write_bytes(content[:-10])
    assert "complete safetensors" in _refused(source, tmp_path / "flax", to="flax")
    (source / "model.safetensors").unlink()
    assert "expected model.safetensors or" in _refused(source, tmp_path / "flax", to="flax")
    (source / "pytorch_model.bin").write_bytes(b"")
    assert "use_safetensors=False" in _refused(source, tmp_path / "flax", to="flax")
    (source / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    assert "gone.safetensors" in _refused(source, tmp_path / "flax", to="flax")
    (source / "model.safetensors.index.json").write_text("{}")
    assert "weight_map" in _refused(source, tmp_path / "flax", to="flax")

    save_file({"lm_head.weight": weights["model.embed_tokens.weight"]}, source / "model.safetensors")
    message = _refused(source, tmp_path / "flax", to="flax")
    assert "missing: model.embed_tokens.weight" in message and "unexpected: lm_head.weight" in message

    assert "pass its directory" in _refused(source / "model.safetensors", tmp_path / "flax", to="flax")

    fields = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**fields, "model_type": "gemma"}))
    (source / "model.safetensors").write_bytes(content)
    assert "model_type" in _refused(source, tmp_path / "flax", to="flax")
    (source / "config.json").write_text("[]")
    assert "JSON object" in _refused(source, tmp_path / "flax", to="flax")
    (source / "config.json").write_text(json.dumps({**fields, "num_hidden_layers": 4}))
    assert "unexpected: model.layers.4." in _refused(source, tmp_path / "flax", to="flax")


def test_an_index_that_leads_elsewhere_is_refused(directory: Path, tmp_path: Path):
    source = tmp_path / "source"
    shutil.copytree(directory, source)
    (source / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"weight_map": {"model.embed_tokens.weight": "../outside.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "file name" in _refused(source, tmp_path / "flax", to="flax")


def test_entries_of_too_few_axes_are_named(weights: dict, tmp_path: Path):
    changed = {**weights, "blocks.0.recurrent_block.linear_x.weight": torch.zeros(())}
    message = _refused(_save(tmp_path / "a.pt", changed), tmp_path / "hf", **OPTIONS)
    assert "misshapen: blocks.0.recurrent_block.linear_x.weight, expected shape (40, 40), got ()." in message


def test_a_weight_in_two_files_is_refused(directory: Path, tmp_path: Path):
    twice = tmp_path / "twice"
    shutil.copytree(directory, twice)
    entries = load_file(twice / "model.safetensors")
    names = sorted(entries)
    save_file(entries, twice / "model-00001-of-00002.safetensors")
    save_file({names[0]: entries[names[0]]}, twice / "model-00002-of-00002.safetensors")
    (twice / "model.safetensors").unlink()
    places = dict.fromkeys(names, "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": {**places, names[0]: "model-00002-of-00002.safetensors"}}
    (twice / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"{names[0]}: in model-0000" in _refused(twice, tmp_path / "a.pt", to="torch")


def test_a_config_that_is_no_json_is_refused(directory: Path, tmp_path: Path):
    broken = tmp_path / "broken"
    shutil.copytree(directory, broken)
    (broken / "config.json").write_text("{")
    assert "config.json" in _refused(broken, tmp_path / "a.pt", to="torch")
