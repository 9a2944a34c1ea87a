"""The README holds true: its code runs, its commands are CI's, its figures are computed."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.suite.page import TITLES, duration
from benchmarks.suite.results import figures
from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.configuration.state_size import kv_cache_bytes, state_bytes
from tests.support import ROOT, code_blocks, require, run_warm, warm_interpreter

README = (ROOT / "README.md").read_text()
PYTHON = code_blocks(README, "python")
COMMANDS = [line for block in code_blocks(README, "bash") for line in block.splitlines()]
OURS = [line for line in COMMANDS if line.startswith("recurrent-gemma ")]
PICTURES = {target: text for text, target in re.findall(r"!\[(.*?)\]\((.*?)\)", README)}
ROWS = json.loads((ROOT / "docs" / "data" / "performance.json").read_text())["rows"]


def test_examples_were_found():
    assert len(PYTHON) >= 4
    assert len(OURS) >= 4


@pytest.mark.parametrize("code", PYTHON, ids=[str(i) for i in range(len(PYTHON))])
def test_python_example_runs(code: str, tmp_path: Path):
    run_warm("-c", code, cwd=tmp_path)


@pytest.mark.parametrize("line", OURS)
def test_command_runs(line: str, tmp_path: Path):
    # The installed script itself is run by .ci/run; here the package may lie on the path only.
    shell = f'recurrent-gemma() {{ {shlex.join(warm_interpreter())} -m recurrent_gemma "$@"; }}; {line}'
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", shell],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    if " exec " in line:
        assert done.stdout.strip().startswith("recurrent_gemma.")


def test_ci_runs_the_two_commands():
    script = (ROOT / ".ci" / "run").read_text()
    first, second = COMMANDS[:2]
    assert f"readme_try='{first}'\n" in script
    assert f"readme_test='{second}'\n" in script
    assert 'in_venv try "$readme_try"' in script
    assert '$readme_test"' in script


@pytest.mark.parametrize("preset", ["recurrentgemma-2b", "recurrentgemma-9b"])
def test_memory_table(preset: str):
    config = RecurrentGemmaConfig.from_preset(preset, dtype=torch.bfloat16)
    size = state_bytes(config)
    expected = [
        preset,
        f"{size.recurrent / 1e6:.2f} MB",
        f"{size.conv / 1e6:.2f} MB",
        f"{size.window / 1e6:.1f} MB",
        f"{size.total / 1e6:.1f} MB",
        f"{kv_cache_bytes(config, 8 * 1024) / 1e6:.0f} MB",
        f"{kv_cache_bytes(config, 128 * 1024) / 1e9:.1f} GB",
    ]
    (row,) = re.findall(rf"^\| {preset} \|.*\|$", README, flags=re.MULTILINE)
    assert [cell.strip() for cell in row.strip("|").split("|")] == expected


def test_picture_and_what_is_said_of_it(tmp_path: Path):
    require("matplotlib")
    drawn = tmp_path / "state_size.svg"
    run_warm("-W", "error", "-m", "benchmarks.state_size_plot", "--output", str(drawn), cwd=tmp_path)
    assert drawn.read_text().rstrip().endswith("</svg>")
    config = RecurrentGemmaConfig.from_preset("recurrentgemma-2b", dtype=torch.bfloat16)
    text = PICTURES["docs/images/state_size.svg"]
    assert f"{kv_cache_bytes(config, 2**20) / 1e9:.0f} GB" in text
    assert f"{state_bytes(config).total / 1e6:.1f} MB" in text


def _seconds(row: str, contestant: str) -> str:
    found = figures(ROWS[row], contestant)
    return "" if found is None else duration(found.median)


def test_speed_table():
    header, *lines = re.findall(r"^\| (`.*|speed .*) \|$", README, flags=re.MULTILINE)
    titles = {title: who for who, title in TITLES.items()}
    contestants = [titles[title] for title in header.split(" | ")[1:]]
    assert len(lines) >= 5 and contestants[0] == "ours"
    for line in lines:
        what, *cells = line.split(" |")
        (row,) = re.findall(r"`(\S+)`", what)
        assert [cell.strip() for cell in cells] == [_seconds(row, who) for who in contestants]


def test_picture_of_the_length_and_what_is_said_of_it():
    text = PICTURES["docs/images/performance_length.svg"]
    for who, row in (("gemma", "context-2k"), ("gemma", "context-32k"), ("ours", "context-32k")):
        assert _seconds(row, who) in text
