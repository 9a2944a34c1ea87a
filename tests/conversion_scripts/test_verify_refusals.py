"""Verification refuses, before it runs or writes anything, what it could not compare, and names the reason."""

import sys
from pathlib import Path

import pytest

from recurrent_gemma.conversion_scripts import ConversionError, convert, verify
from tests.conversion_scripts.small_models import save
from tests.support import require

require("recurrentgemma")
require("orbax.checkpoint")
require("jax")


def test_what_deepmind_cannot_express_is_refused_before_anything_is_written(tmp_path: Path):
    source = save(tmp_path, num_key_value_heads=2)
    with pytest.raises(ConversionError, match=r"DeepMind's code.* cannot express.*num_key_value_heads: expected 1"):
        convert(source, tmp_path / "copy", to="hf", verify=True)
    assert not (tmp_path / "copy").exists()
    with pytest.raises(ConversionError, match="num_key_value_heads"):
        verify(source, source)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_types": ["recurrent"], "lru_width": 33, "num_attention_heads": 1}, "lru_width: expected an even"),
        ({"block_types": ["attention"], "hidden_size": 20, "lru_width": 20}, "expected a multiple of 4, .* got 5"),
    ],
)
def test_widths_that_deepmind_cannot_split_are_refused(tmp_path: Path, fields: dict, message: str):
    source = save(tmp_path, num_hidden_layers=1, **fields)
    with pytest.raises(ConversionError, match=message):
        verify(source, source)
    with pytest.raises(ConversionError, match=message):
        convert(source, tmp_path / "torch.pt")


def test_fields_left_open(intact: Path):
    with pytest.raises(ConversionError, match="attention_window_size, embeddings_scale_by_sqrt_dim, logits_soft_cap"):
        verify(intact / "flax", intact / "torch.pt")
    with pytest.raises(ConversionError, match="expected 2560"):
        verify(intact / "flax", intact / "torch.pt", preset="2b")
    with pytest.raises(ValueError, match="preset: expected 2b"):
        verify(intact / "flax", intact / "torch.pt", preset="3b")
    with pytest.raises(ValueError, match="logits_soft_cap: expected None"):
        verify(intact / "hf", intact / "hf", logits_soft_cap=30.0)


def test_different_shapes_are_named(intact: Path, tmp_path: Path):
    other = save(tmp_path, intermediate_size=80)
    with pytest.raises(ConversionError, match=r"layers\.1\.mlp_block\.down_proj\.weight: expected \(32, 48\) .source"):
        verify(intact / "torch.pt", other)
    deeper = save(tmp_path / "deeper", num_hidden_layers=4)
    with pytest.raises(ConversionError, match=r"layers\.3\.channel_pre_norm\.weight: expected no such tensor"):
        verify(intact / "torch.pt", deeper)


def test_missing_dependency(intact: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "recurrentgemma.jax.griffin", None)
    for call in (
        lambda: verify(intact / "hf", intact / "hf"),
        lambda: convert(intact / "hf", tmp_path / "a.pt", verify=True),
    ):
        with pytest.raises(ImportError, match=r'pip install "recurrent-gemma\[convert\]"'):
            call()
    assert not (tmp_path / "a.pt").exists()
