"""docs/adapters_and_preferences.md holds true: its code runs, one block after the other, and it names what raises."""

from pathlib import Path

from recurrent_gemma.modeling.layers import LINEAR_LAYERS
from tests.support import ROOT, code_blocks, require, run_warm

PAGE = (ROOT / "docs" / "adapters_and_preferences.md").read_text()


def test_the_examples_run_one_after_the_other(tmp_path: Path):
    require("trl")
    code = code_blocks(PAGE, "python")
    assert len(code) == 3
    run_warm("-c", "\n".join(code), cwd=tmp_path)


def test_it_names_the_default_targets():
    assert [name for names in LINEAR_LAYERS.values() for name in names if f"`{name}`" not in PAGE] == []
