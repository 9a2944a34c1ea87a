"""docs/cache.md holds true: its code runs, its table is what a cache holds, its sizes are those of real states."""

import re
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.configuration.state_size import state_bytes
from recurrent_gemma.modeling import RecurrentGemmaCache
from recurrent_gemma.modeling.cache.progress import LAST_IDS
from recurrent_gemma.modeling.cache.recording import DEFAULT_LIMIT
from tests.modeling.models import tiny_config, tiny_model
from tests.support import ROOT, code_blocks, run_python
from tests.tolerances import SPLIT_EQUALS_WHOLE_LOGITS

PAGE = (ROOT / "docs" / "cache.md").read_text()
SIZES = re.findall(r"^\| ([\w-]+) \| (bfloat16|float32) \| (.*) \|$", PAGE, flags=re.MULTILINE)


def test_the_examples_run_one_after_the_other(tmp_path: Path):
    code = code_blocks(PAGE, "python")
    assert len(code) == 7
    run_python("-c", "\n".join(code), cwd=tmp_path)


@pytest.mark.parametrize("length", [3, 20])
def test_what_it_holds(length: int):
    model = tiny_model(tiny_config(num_hidden_layers=3)).to(torch.bfloat16)
    config, cache = model.config, RecurrentGemmaCache(model.config)
    with torch.no_grad():
        model(torch.randint(3, 97, (2, length)), past_key_values=cache)
    sizes = {
        "B": 2,
        "K - 1": config.conv1d_width - 1,
        "R": config.lru_width,
        "G": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "up to W": min(length, config.attention_window_size),
        f"up to {LAST_IDS}": min(length, LAST_IDS),
    }
    dtypes = {"the model's": torch.bfloat16, "fp32": torch.float32, "int64": torch.int64}
    rows = re.findall(r"^\| (\w+ [^|]+) \| [^|]+ \| `(\S+)` \| \(([^|]+?),?\) \| ([^|]+) \|$", PAGE, flags=re.MULTILINE)
    assert len(rows) == 6
    layers = {"a recurrent layer": (0, 1), "an attention layer": (2,), "the cache": ("",)}
    expected = {
        name.replace("N", str(layer)): (tuple(sizes[size] for size in shape.split(", ")), dtypes[dtype])
        for where, name, shape, dtype in rows
        for layer in layers[where]
    }
    assert {name: (tuple(t.shape), t.dtype) for name, t in cache.tensors().items()} == expected
    assert cache.columns == cache.get_seq_length() == length


def test_sizes():
    assert len(SIZES) == 6
    for preset, dtype, cells in SIZES:
        size = state_bytes(RecurrentGemmaConfig.from_preset(preset), dtype=getattr(torch, dtype))
        parts = (size.recurrent, size.conv, size.window, size.total)
        assert [cell.strip() for cell in cells.split("|")] == [f"{part:,}" for part in parts], (preset, dtype)


@pytest.mark.parametrize("preset", ["recurrentgemma-2b", "griffin-paper-7b"])
def test_sizes_are_those_of_buffers(preset: str):
    config = RecurrentGemmaConfig.from_preset(preset)
    cache = RecurrentGemmaCache(config, static=True, batch_size=1, dtype=torch.bfloat16, device="meta")
    held = sum(t.nbytes for name, t in cache.buffers().items() if name.startswith("layers.") and t.dtype != torch.int64)
    slot = 2 * config.num_key_value_heads * config.head_dim * torch.bfloat16.itemsize
    spare = slot * config.layers_block_type.count("sliding_attention")  # a ring has one slot more than the window
    (cells,) = (cells for name, dtype, cells in SIZES if (name, dtype) == (preset, "bfloat16"))
    assert held - spare == int(cells.split("|")[-1].replace(",", ""))


def test_figures_in_the_text():
    assert f"The tests hold it to {SPLIT_EQUALS_WHOLE_LOGITS:.0e}".replace("e-0", "e-") in PAGE
    assert f"taken back, {DEFAULT_LIMIT} unless set otherwise" in " ".join(PAGE.split())


def test_what_raises():
    model = tiny_model()
    ids = torch.randint(3, 97, (2, 5))
    other = RecurrentGemmaCache(tiny_config(attention_window_size=9))
    rows, static = RecurrentGemmaCache(model.config), RecurrentGemmaCache(model.config, static=True)
    with torch.no_grad():
        model(ids[:1], past_key_values=rows)
    attempts = [
        (TypeError, lambda: model(ids, past_key_values=DynamicCache())),
        (ValueError, lambda: model(ids, past_key_values=other)),
        (ValueError, lambda: model(ids, past_key_values=rows)),
        (ValueError, lambda: model(ids[:1], past_key_values=rows, cache=rows.clone())),
        (ValueError, lambda: rows.crop(-1)),
        (NotImplementedError, static.activate_past_recording),
        (ValueError, lambda: model(ids, past_key_values=static)),
        (TypeError, lambda: rows.layers[2].update(ids, ids)),
        (ValueError, lambda: model.generate(ids, cache_implementation="quantized", max_new_tokens=2)),
    ]
    for error, attempt in attempts:
        with pytest.raises(error):
            attempt()
    assert (rows.columns, static.columns) == (1 * 5, 0)
    table = PAGE.partition("## What raises")[2]
    assert set(re.findall(r"`(\w+Error)`", table)) == {error.__name__ for error, _ in attempts}
