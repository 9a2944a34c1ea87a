"""``info`` shows what the model is and keeps; figures from independent routes."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from recurrent_gemma import PRESETS, RecurrentGemmaConfig
from recurrent_gemma.cli.app import run
from recurrent_gemma.cli.info import count_parameters


def _info(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, list[str]]:
    """Cells of the printed tables, by the first cell of their row."""
    assert run(["info", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    rows = [
        [cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in captured.out.splitlines()
    ]
    return {row[0]: row[1:] for row in rows}


def test_checkpoint(checkpoint: Path, capsys: pytest.CaptureFixture[str]):
    rows = _info(capsys, str(checkpoint))
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert rows["parameters"] == [f"{sum(p.numel() for p in model.parameters()):,}"]
    assert rows["architecture"] == ["RecurrentGemmaForCausalLM"]
    assert rows["layers"][0].startswith("3: 2 recurrent, 1 attention; pattern recurrent, recurrent")
    assert rows["weights"][0].startswith("F32, ")
    # fp32: 2 layers of 32 values; of 3 x 32; 1 layer of 8 positions of one head of 8, keys and values. 3 such layers.
    state = ["256 bytes", "768 bytes", "512 bytes", "1.5 kB"]
    assert rows["2,048"] == [*state, "393.2 kB", "256.0x"]
    assert rows["131,072"] == [*state, "25.2 MB", "16384.0x"]


def test_dtype_counts_the_state_as_the_model_would_run(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    AutoModelForCausalLM.from_pretrained(checkpoint).to(torch.bfloat16).save_pretrained(tmp_path)
    capsys.readouterr()
    stored = _info(capsys, str(tmp_path))
    assert stored["weights"][0].startswith("BF16, ")
    assert stored["8,192"] == _info(capsys, str(checkpoint), "--dtype", "bfloat16")["8,192"]
    assert stored["8,192"] != _info(capsys, str(checkpoint))["8,192"]


def test_presets(capsys: pytest.CaptureFixture[str]):
    rows = _info(capsys, "recurrentgemma-2b")
    assert rows["8,192"] == ["184.3 kB", "276.5 kB", "16.8 MB", "17.2 MB", "218.1 MB", "12.7x"]
    assert rows["131,072"][-2:] == ["3.5 GB", "202.4x"]
    assert rows["layers"][0].startswith("26: 18 recurrent, 8 attention")
    assert "weights" not in rows
    rows = _info(capsys, "hawk-paper-7b")
    assert rows["layers"] == ["32: 32 recurrent; pattern recurrent"]
    assert "attention" not in rows and "window" not in rows


# The weights by hand: what the papers' and model cards' rounded figures cannot tell apart.
@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_by_hand(preset: str):
    config = RecurrentGemmaConfig.from_preset(preset)
    width, recurrence, mlp = config.hidden_size, config.lru_width, config.mlp_width
    key_value = 2 * width * config.num_key_value_heads * config.head_dim
    attention = 2 * width * width + key_value + width
    gates = 2 * (recurrence**2 // config.num_attention_heads + recurrence) + recurrence
    recurrent = 2 * (width + 1) * recurrence + (config.conv1d_width + 1) * recurrence + gates + (recurrence + 1) * width
    shared = 2 * width + 2 * (width + 1) * mlp + (mlp + 1) * width
    layers = config.layers_block_type
    expected = config.vocab_size * width + width + len(layers) * shared
    expected += layers.count("linear_attention") * recurrent + layers.count("sliding_attention") * attention
    assert count_parameters(config) == expected


def test_a_path_with_brackets_is_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str], checkpoint: Path):
    directory = tmp_path / "[bold]"
    directory.symlink_to(checkpoint)
    assert run(["info", str(directory)]) == 0
    assert "[bold]" in capsys.readouterr().out.replace("\n", "")
