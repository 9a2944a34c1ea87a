"""docs/evaluation.md holds true: its code runs on local data, its commands exist, its sums are sums."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from recurrent_gemma.cli import app
from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.evaluation.context_tree import context_tree, tokens_to_read
from recurrent_gemma.evaluation.rows import ROWS
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM
from tests.support import ROOT, code_blocks, require, run_warm

PAGE = (ROOT / "docs" / "evaluation.md").read_text()
DATA = ROOT / "tests" / "evaluation" / "local_data"


def commands() -> list[list[str]]:
    """Words of every command of this package's on the page, from its name on."""
    lines = "\n".join(code_blocks(PAGE, "bash")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[line.index("recurrent-gemma") + 1 :] for line in words if "recurrent-gemma" in line]


def test_commands_have_the_options_shown(capsys: pytest.CaptureFixture[str]):
    assert len(commands()) >= 12
    for command, *words in commands():
        assert app.run([command, "--help"]) == 0
        shown = capsys.readouterr().out
        options = [] if command == "exec" else [word for word in words if word.startswith("--")]
        assert [option for option in options if option not in shown] == []


def test_rows_named_in_commands_exist():
    known = {row.name for row in ROWS}
    named = re.findall(r"--classifier(?:-label)? (\w+)=", PAGE)
    assert named and set(named) <= known
    assert {"MMLU", "Natural Questions"} <= known


def test_python_examples_run(tmp_path: Path):
    require("lm_eval")
    (tmp_path / "data").symlink_to(DATA)
    save, *examples = code_blocks(PAGE, "python")
    assert len(examples) == 2
    for code in examples:
        run_warm("-c", code, cwd=tmp_path)
    assert "| PIQA |" in (tmp_path / "report" / "report.md").read_text()
    # The data set itself is on a hub; that the function writes what --data-dir reads is seen on a local one.
    local = DATA / "google-research-datasets__nq_open" / "default"
    substitute = f"""
import datasets
local = {str(local)!r}
datasets.load_dataset = lambda name, configuration, split: datasets.Dataset.from_json(f"{{local}}/{{split}}.jsonl")
"""
    run_warm("-c", f"{substitute}\n{save}", "saved", cwd=tmp_path)
    arguments = ["--tasks", "Natural Questions", "--data-dir", "saved", "--output", "again", "--limit", "1"]
    run_warm("-m", "recurrent_gemma", "eval", "--device", "cpu", *arguments, str(_demo()), cwd=tmp_path)


def _demo() -> Path:
    return ROOT / "recurrent_gemma" / "demo"


def test_tokens_of_the_benchmark():
    shots, questions = [list(range(600 * i, 600 * i + 600)) for i in (1, 2)], range(16)
    contexts = [shots[i % 2] + [10_000 + 100 * i + j for j in range(100)] for i in questions]
    rows = re.findall(r"^\| (\d+) tokens? \| ([\d,]+) \| ([\d,]+) \| ([\d.]+) \| [\d.]+ \(", PAGE, flags=re.MULTILINE)
    assert [int(length) for length, *_ in rows] == [1, 20]
    for length, *figures in rows:
        choices = [[20_000 + choice] * int(length) for choice in range(4)]
        shared = tokens_to_read(context_tree([(context, choice) for context in contexts for choice in choices]))
        once = {(*context, *choice[:-1]) for context in contexts for choice in choices}
        plain = sum(map(len, once))
        assert figures == [f"{plain:,}", f"{shared:,}", f"{plain / shared:.1f}"]


def test_the_table_of_tokens():
    rows = re.findall(r"^\| ([\w -]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]*) ?\|$", PAGE, flags=re.MULTILINE)
    table = {name: [int(number.replace(",", "") or 0) for number in numbers] for name, *numbers in rows}
    total = table.pop("all")
    assert list(table) == [row.name for row in ROWS if row.table == "capability"]
    assert [sum(column) for column in zip(*table.values(), strict=True)][:3] == total[:3]
    assert all(shared <= plain for _, plain, shared, _ in table.values())


def test_operations_of_a_token():
    config = RecurrentGemmaConfig.from_preset("recurrentgemma-2b")
    with torch.device("meta"):
        model = RecurrentGemmaForCausalLM(config)
    weights = model.num_parameters() - config.vocab_size * config.hidden_size
    text = " ".join(PAGE.split())
    assert f"{2 * weights / 1e9:.1f}e9 operations, two for each of the {weights / 1e9:.2f}e9 weights" in text
    read = (
        int(re.findall(r"^\| all \| [\d,]+ \| [\d,]+ \| ([\d,]+)", PAGE, flags=re.MULTILINE)[0].replace(",", "")) * 1e3
    )
    assert f"{round(read / 1e6)} million tokens are {2 * weights * read / 1e16:.1f}e16" in text
