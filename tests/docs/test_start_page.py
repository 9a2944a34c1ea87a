"""docs/start.md holds true: its steps run one after the other in one directory, and it leads to every page."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recurrent_gemma.cli import app
from tests.support import ROOT, code_blocks, run_python

PATH = ROOT / "docs" / "start.md"
PAGE = PATH.read_text()
INSTALL, GENERATE, USE, CONVERT, LIST, NOT_RUN = code_blocks(PAGE, "bash")
FRONT_PAGE = "index.md"  # which leads here


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the page's Python has been run."""
    directory = tmp_path_factory.mktemp("start")
    code = code_blocks(PAGE, "python")
    assert len(code) == 4
    code.append("assert before(labels, labels=labels).loss > 2 and after(labels, labels=labels).loss < 0.5")
    run_python("-W", "ignore", "-c", "\n".join(code), cwd=directory)
    return directory


def test_the_commands_run(directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(directory)
    printed = []
    for block in (GENERATE, USE, CONVERT, LIST):
        for line in block.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "recurrent-gemma"
            assert app.run(arguments) == 0, line
        printed.append(capsys.readouterr().out)
    generated, used, _, listed = printed
    assert "In the beginning" in generated and "MMLU" in listed
    assert "My name is Nemo, and I live below the sea." in used
    first, again = (load_file(directory / name / "model.safetensors") for name in ("nemo", "again"))
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)


def test_what_is_not_run_is_named():
    assert INSTALL == "pip install recurrent-gemma\n"
    assert [line.split()[0] for line in NOT_RUN.splitlines()] == ["recurrent-gemma", "vllm"]


def test_it_leads_to_every_page():
    def linked(page: str) -> set[str]:
        return set(re.findall(r"\]\((\w+\.md)", page))

    fine_tuning = (PATH.parent / "fine_tuning.md").read_text()
    pages = {path.name for path in PATH.parent.glob("*.md")}
    assert pages - linked(PAGE) - linked(fine_tuning) - {PATH.name, FRONT_PAGE} == set()
