"""All forms of a kind of checkpoint (versions, prefixes, shards, views) read as the same values; broken ones raise."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from recurrent_gemma import RecurrentGemmaForCausalLM, RecurrentGemmaModel
from recurrent_gemma.conversion_scripts import ConversionError, convert
from recurrent_gemma.conversion_scripts.checkpoints import open_checkpoint
from tests.conversion_scripts.checkpoints import (
    any_values,
    flattened,
    jax_shapes,
    model_values,
    nested,
    open_fields,
    same_bits,
    save_orbax,
    save_torch,
    small_config,
    unpack_old_orbax,
)
from tests.support import require

CONFIG = small_config("recurrentgemma-2b")
OLD = {"attention_window_size": 8, "embeddings_scale_by_sqrt_dim": True, "logits_soft_cap": 30.0}


@pytest.fixture(scope="module")
def params() -> dict[str, torch.Tensor]:
    require("recurrentgemma")
    return {name: any_values(shape, torch.bfloat16) for name, shape in jax_shapes(CONFIG).items()}


def _expect_same(path: Path, params: dict[str, torch.Tensor]) -> None:
    checkpoint = open_checkpoint(path)
    assert checkpoint.tensors.keys() == params.keys()
    assert [name for name, value in params.items() if not same_bits(checkpoint.read(name), value)] == []


@pytest.mark.parametrize(
    ("name", "dtype"), [("orbax_0_5_9_ocdbt", torch.bfloat16), ("orbax_0_5_9_zarr", torch.float32)]
)
def test_directories_of_an_orbax_of_2024(name: str, dtype: torch.dtype, tmp_path: Path):
    require("orbax.checkpoint")
    source, values = unpack_old_orbax(name, tmp_path)
    _expect_same(source, {name: value.to(dtype) for name, value in values.items()})
    convert(source, tmp_path / "hf", **OLD)
    convert(tmp_path / "hf", tmp_path / "flax", to="flax")
    _expect_same(tmp_path / "flax", {name: value.to(dtype) for name, value in values.items()})


@pytest.mark.parametrize(
    "options", [{"use_zarr3": True}, {"use_ocdbt": False}, {"use_ocdbt": False, "use_zarr3": True}]
)
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_storage_forms_and_nesting(options: dict, depth: int, params: dict, tmp_path: Path):
    ocp = require("orbax.checkpoint")
    tree = nested(params)
    for _ in range(depth):
        tree = {"params": tree}
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options))
    checkpointer.save(tmp_path / "source", args=ocp.args.PyTreeSave(tree))
    _expect_same(tmp_path / "source", params)


def test_arrays_in_several_chunks(params: dict, tmp_path: Path):
    ocp = require("orbax.checkpoint")
    jax = require("jax")
    tree = nested(params)
    chunked = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=64), tree)
    ocp.PyTreeCheckpointer().save(tmp_path / "source", tree, save_args=chunked)
    _expect_same(tmp_path / "source", params)


def test_orbax_is_read_by_a_relative_path(params: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_orbax(tmp_path / "source", params)
    monkeypatch.chdir(tmp_path)
    convert("source", "hf", **open_fields(CONFIG))
    convert("hf", "flax", to="flax")
    _expect_same(tmp_path / "flax", params)


def test_what_is_written_is_restored_like_what_deepmind_writes(params: dict, tmp_path: Path):
    """The tree, its order and the types in it, restored with the arguments of DeepMind's ``load_parameters``."""
    ocp = require("orbax.checkpoint")
    jax = require("jax")
    save_orbax(tmp_path / "theirs", params)
    convert(tmp_path / "theirs", tmp_path / "ours", to="flax", dtype="bfloat16")
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    args = ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=sharding)
    restore_args = jax.tree.map(lambda _: args, {"params": nested(params)})
    theirs, ours = (
        ocp.PyTreeCheckpointer().restore(tmp_path / name, restore_args=restore_args) for name in ("theirs", "ours")
    )
    assert jax.tree.structure(theirs) == jax.tree.structure(ours)
    for name, value in flattened(theirs["params"]).items():
        other = flattened(ours["params"])[name]
        assert type(value) is type(other) and value.dtype == other.dtype and (value == other).all()


@pytest.mark.parametrize("change", ["truncated", "no tree", "no manifest", "other tree"])
def test_broken_orbax_metadata_is_a_clear_error(change: str, params: dict, tmp_path: Path):
    source = save_orbax(tmp_path / "source", params)
    if change == "truncated":
        content = (source / "_METADATA").read_bytes()
        (source / "_METADATA").write_bytes(content[: len(content) // 2])
    elif change == "no tree":
        (source / "_METADATA").unlink()
    elif change == "other tree":
        (source / "_METADATA").write_text('{"format": 99, "tree": []}')
    else:
        (source / "manifest.ocdbt").unlink()
    with pytest.raises(ConversionError, match=r"source: .*Orbax|cannot be read"):
        convert(source, tmp_path / "hf", **open_fields(CONFIG))
    assert not (tmp_path / "hf").exists()


def test_missing_orbax_data_is_a_clear_error(params: dict, tmp_path: Path):
    source = save_orbax(tmp_path / "source", params)
    for data in (source / "ocdbt.process_0" / "d").iterdir():
        data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(ConversionError, match="cannot be read"):
        convert(source, tmp_path / "hf", **open_fields(CONFIG))
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pth"])
def test_torch_names_with_and_without_prefix(suffix: str, params: dict, tmp_path: Path):
    with_prefix = torch.load(save_torch(tmp_path / f"a{suffix}", params), weights_only=True)
    bare = {name.removeprefix("params."): value for name, value in with_prefix.items()}
    torch.save(bare, tmp_path / f"b{suffix}")
    # As views of one storage, in another order.
    flat = torch.cat([value.reshape(-1) for value in bare.values()])
    parts = flat.split([value.numel() for value in bare.values()])
    views = {name: part.view(value.shape) for part, (name, value) in zip(parts, bare.items(), strict=True)}
    torch.save(dict(reversed(views.items())), tmp_path / f"c{suffix}")
    torch.save({"params": bare}, tmp_path / f"d{suffix}")
    for name in "abcd":
        _expect_same(tmp_path / f"{name}{suffix}", bare)
        convert(tmp_path / f"{name}{suffix}", tmp_path / name, to="flax")
        _expect_same(tmp_path / name, params)


def test_torch_views_of_every_kind(tmp_path: Path):
    base = torch.randn(6, 10)
    views = {
        "transposed": base.T, "strided": base[::2, 1::3], "expanded": base[:, :1].expand(6, 4), "scalar": base[0, 0],
        "empty": base[:0], "parameter": torch.nn.Parameter(base[1:]), "negated": torch._neg_view(base[1]),
    }  # fmt: skip
    torch.save(views, tmp_path / "views.pt")
    checkpoint = open_checkpoint(tmp_path / "views.pt")
    assert {name: info.shape for name, info in checkpoint.tensors.items()} == {
        name: tuple(view.shape) for name, view in views.items()
    }
    assert all(torch.equal(checkpoint.read(name), view) for name, view in views.items())


def test_torch_file_is_what_torch_save_makes(directory: Path, tmp_path: Path):
    """Whole, aligned, with right checksums, and free to be mapped."""
    convert(directory, tmp_path / "ours.pt")
    loaded = torch.load(tmp_path / "ours.pt", weights_only=True)
    mapped = torch.load(tmp_path / "ours.pt", weights_only=True, mmap=True)
    assert all(torch.equal(value, mapped[name]) for name, value in loaded.items())
    torch.save(loaded, tmp_path / "theirs.pt")
    archives = [zipfile.ZipFile(tmp_path / f"{name}.pt") for name in ("ours", "theirs")]
    assert archives[0].testzip() is None
    records = [
        {name.partition("/")[2]: archive.getinfo(name).CRC for name in archive.namelist() if "/data/" in name}
        for archive in archives
    ]
    assert records[0] == records[1]
    # Transposed weights are contiguous in the file.
    assert all(value.is_contiguous() for value in loaded.values())


def test_shards_single_file_and_backbone_are_one_source(directory: Path, tmp_path: Path):
    model = RecurrentGemmaForCausalLM.from_pretrained(directory)
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    RecurrentGemmaModel.from_pretrained(directory).save_pretrained(tmp_path / "backbone")
    weights = load_file(directory / "model.safetensors")
    for name in ("shards", "backbone"):
        _expect_same(tmp_path / name, weights)
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    assert "embed_tokens.weight" in load_file(tmp_path / "backbone" / "model.safetensors")


def test_index_is_the_one_of_save_pretrained(directory: Path, tmp_path: Path):
    RecurrentGemmaForCausalLM.from_pretrained(directory).save_pretrained(tmp_path / "theirs", max_shard_size="50KB")
    convert(directory, tmp_path / "ours", to="hf", max_shard_size="50KB")
    index = "model.safetensors.index.json"
    theirs, ours = (json.loads((tmp_path / name / index).read_text()) for name in ("theirs", "ours"))
    assert sorted(theirs["weight_map"]) == sorted(ours["weight_map"])
    assert theirs["metadata"]["total_size"] == ours["metadata"]["total_size"]
    for name in {*ours["weight_map"].values()}:
        assert (tmp_path / "ours" / name).is_file()


def test_head_that_is_the_embedding_table_is_left_out(directory: Path, tmp_path: Path):
    shutil.copytree(directory, tmp_path / "source")
    weights = load_file(directory / "model.safetensors")
    save_file(
        weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()},
        tmp_path / "source" / "model.safetensors",
        {"format": "pt"},
    )
    result = convert(tmp_path / "source", tmp_path / "target", to="hf")
    assert any("lm_head.weight" in note for note in result.plan.notes)
    _expect_same(tmp_path / "target", weights)
    save_file(
        weights | {"lm_head.weight": weights["model.embed_tokens.weight"] + 1},
        tmp_path / "source" / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ConversionError, match=r"lm_head\.weight: expected model\.embed_tokens\.weight"):
        convert(tmp_path / "source", tmp_path / "another", to="hf")


def test_kinds_are_told_apart(directory: Path, params: dict, tmp_path: Path):
    kinds = {
        directory: "hf",
        save_orbax(tmp_path / "orbax", params): "flax",
        save_torch(tmp_path / "file.pt", params): "torch",
    }
    assert {path: open_checkpoint(path).kind for path in kinds} == kinds
    with pytest.raises(ConversionError, match=r"did you mean .*file\.pt"):
        open_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_checkpoint(tmp_path / "nothing")


def test_model_values_survive_the_in_memory_forms():
    """bfloat16 goes through numpy by its bits, whatever they are."""
    from recurrent_gemma.conversion_scripts.checkpoints.orbax import array_of, tensor_of

    require("ml_dtypes")
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for tensor in (any_values((3, 5), dtype), any_values((5, 3), dtype).T, model_values((), dtype)):
            array = array_of(tensor)
            assert str(array.dtype) == str(dtype).removeprefix("torch.")
            assert same_bits(tensor_of(array), tensor)
