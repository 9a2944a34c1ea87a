"""docs/training.md holds true: its code runs, one block after the other."""

from pathlib import Path

from tests.support import ROOT, code_blocks, run_warm
from tests.tolerances import ROWS_EQUAL_SOLO_GRADIENTS, ROWS_EQUAL_SOLO_LOGITS

PAGE = (ROOT / "docs" / "training.md").read_text()


def test_the_examples_run_one_after_the_other(tmp_path: Path):
    code = code_blocks(PAGE, "python")
    assert len(code) == 3
    run_warm("-c", "\n".join([*code, "assert all(x.isfinite() for x in (loss, first, third))"]), cwd=tmp_path)
    assert (tmp_path / "long_documents" / "checkpoint-2" / "carried_state.safetensors").is_file()


def test_the_tolerances_are_those_of_the_tests():
    assert (ROWS_EQUAL_SOLO_LOGITS, ROWS_EQUAL_SOLO_GRADIENTS) == (2e-5, 1e-4)
    assert "losses to 2e-5, gradients to 1e-4 of the largest" in PAGE
