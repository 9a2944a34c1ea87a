"""docs/trainer.md holds true: its code runs, one block after the other, and what it names exists."""

import re
from pathlib import Path

import pytest
from transformers import TrainerState

from tests.support import ROOT, code_blocks, run_warm

PAGE = (ROOT / "docs" / "trainer.md").read_text()


def test_the_examples_run_one_after_the_other(tmp_path: Path):
    code = code_blocks(PAGE, "python")
    assert len(code) == 3
    code.append("assert trainer.state.global_step == 4 and model.is_gradient_checkpointing")
    run_warm("-W", "ignore", "-c", "\n".join(code), cwd=tmp_path)
    state = TrainerState.load_from_json(str(tmp_path / "run" / "checkpoint-4" / "trainer_state.json"))
    assert state.global_step == 4


@pytest.mark.parametrize("path", sorted(set(re.findall(r"examples/fine_tuning/[\w/]+\.\w+", PAGE))))
def test_files_exist(path: str):
    assert (ROOT / path).is_file()
