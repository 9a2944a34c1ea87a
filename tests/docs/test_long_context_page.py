"""docs/long_context.md holds true: its code runs, and its figures are those of configs and of the evidence."""

import shlex
from pathlib import Path

import torch

from benchmarks.__main__ import parse
from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.configuration.state_size import state_bytes
from tests.support import ROOT, code_blocks, run_python

PAGE = (ROOT / "docs" / "long_context.md").read_text()
TEXT = " ".join(PAGE.split())
EVIDENCE = " ".join((ROOT / "docs" / "evidence.md").read_text().split())


def test_the_examples_run_one_after_the_other(tmp_path: Path):
    code = code_blocks(PAGE, "python")
    assert len(code) == 2
    both_ways = """
whole = model(ids[:, :-1]).logits[:, -1]
torch.testing.assert_close(last, whole, atol=2e-5, rtol=0)
assert ids.shape[1] > 4000 and tokens.shape[1] == ids.shape[1] + 20
loaded = recurrent_gemma.RecurrentGemmaCache.load("after_60_lines.safetensors", model.config)
assert loaded.columns == cache.columns > 500
"""
    run_python("-c", "\n".join(["import torch\ntorch.set_grad_enabled(False)", *code, both_ways]), cwd=tmp_path)


def test_the_command_is_understood():
    (command,) = code_blocks(PAGE, "bash")
    _, _, _, *arguments = shlex.split(command)
    parse(arguments)


def test_figures_of_the_state():
    config = RecurrentGemmaConfig.from_preset("recurrentgemma-2b", dtype=torch.bfloat16)
    assert f"no: {state_bytes(config).total / 1e6:.1f} MB of RecurrentGemma 2B" in TEXT
    assert f"once {config.attention_window_size:,} tokens are read" in TEXT
    assert f"make {512 * config.vocab_size * 4 / 1e9:.1f} GB in fp32" in TEXT


def test_positions_that_fp32_tells_apart():
    assert f"2^24 ({2**24 / 1e6:.1f} million)" in TEXT
    ends = torch.tensor([2**24 - 1, 2**24, 2**24 + 1]).float()
    assert ends[0] != ends[1] and ends[1] == ends[2]


def test_what_is_said_of_memory_is_in_the_evidence():
    for figure in (
        "positions 16,384 to 43,162",
        "-0.026 nats (-0.057 to +0.001)",
        "0.007",
        "between 32 and 63 tokens later, and no longer distinguishable from 64 on",
        "in 20 to 24 % of",
        "where guessing gives 20 %",
        "rows of 256 tokens",
    ):
        assert figure in TEXT and figure in EVIDENCE, figure
    hawk = EVIDENCE.split("| Hawk |")[1]  # of the first table, the last marker's value
    assert hawk.split("|")[4].split()[0] == "0.967"
    assert "accuracy of 0.967 at 512 columns, trained at 32" in TEXT
