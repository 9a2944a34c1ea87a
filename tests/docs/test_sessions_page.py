"""docs/sessions.md holds true: its code runs, its commands exist, its sizes are computed."""

import re
from pathlib import Path

import pytest
import torch

from recurrent_gemma.cli import app
from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.configuration.state_size import state_bytes
from tests.support import ROOT, code_blocks, run_warm

PAGE = (ROOT / "docs" / "sessions.md").read_text()


@pytest.mark.parametrize("preset", ["recurrentgemma-2b", "recurrentgemma-9b"])
def test_sizes(preset: str):
    size = state_bytes(RecurrentGemmaConfig.from_preset(preset, dtype=torch.bfloat16))
    expected = [preset, *(f"{part:,}" for part in (size.recurrent, size.conv, size.window, size.total))]
    (row,) = re.findall(rf"^\| {preset} \|.*\|$", PAGE, flags=re.MULTILINE)
    assert [cell.strip() for cell in row.strip("|").split("|")] == expected


def test_python_example_runs(tmp_path: Path):
    (code,) = code_blocks(PAGE, "python")
    run_warm("-c", code + "assert ids.shape[0] == 3\nassert drafts.batch_size == 3", cwd=tmp_path)
    assert app.run(["session", "info", str(tmp_path / "text.session")]) == 0


def test_commands_have_the_options_shown(capsys: pytest.CaptureFixture[str]):
    (block,) = code_blocks(PAGE, "bash")
    lines = [line.split("#")[0].split()[1:] for line in block.splitlines()]
    assert len(lines) >= 5
    for words in lines:
        command = words[:2] if words[0] == "session" else words[:1]
        assert app.run([*command, "--help"]) == 0
        shown = capsys.readouterr().out
        assert [word for word in words if word.startswith("--") and word not in shown] == []
