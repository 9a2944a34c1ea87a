"""docs/generation.md holds true: its code runs, one block after the other."""

from pathlib import Path

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling.cache.recording import DEFAULT_LIMIT
from tests.support import ROOT, code_blocks, run_warm

PAGE = (ROOT / "docs" / "generation.md").read_text()


def test_the_examples_run_one_after_the_other(tmp_path: Path):
    code = code_blocks(PAGE, "python")
    assert len(code) == 4
    run_warm("-c", "\n".join(code), cwd=tmp_path)


def test_what_a_recorded_column_takes():
    config = RecurrentGemmaConfig.from_preset("recurrentgemma-2b")
    recurrent = config.layers_block_type.count("linear_attention")
    attention = config.num_hidden_layers - recurrent
    taken = recurrent * config.lru_width * (4 + 2) + attention * 2 * config.num_key_value_heads * config.head_dim * 2
    assert f"a recorded column takes {taken / 1e6:.2f} MB" in PAGE
    assert f"takes {taken / 1e6:.2f} MB in bf16" in (ROOT / "docs" / "design.md").read_text()
    assert f", {DEFAULT_LIMIT} unless set otherwise" in PAGE
