"""docs/performance.md holds true: its commands exist, and its tables and pictures are those of the results."""

import json
import re
import shlex

import pytest

from benchmarks.__main__ import main, parse
from benchmarks.gpu_suite import command as gpu
from benchmarks.models import SIZES
from benchmarks.peers import PEERS
from benchmarks.suite.page import NAME, NOTHING, TABLES, duration, fill
from benchmarks.suite.results import figures
from tests.support import ROOT, code_blocks

PATH = ROOT / "docs" / "performance.md"
PAGE = PATH.read_text()
COMMANDS = [line for block in code_blocks(PAGE, "bash") for line in block.splitlines()]
OURS = [line for line in COMMANDS if line.startswith("python -m benchmarks")]


def test_every_command_is_understood():
    assert len(OURS) == len(COMMANDS) >= 8
    for line in OURS:
        _, _, _, *arguments = shlex.split(line)
        parse(arguments)
    with pytest.raises(SystemExit):
        parse(["--no-such-option"])


def test_the_help_names_every_case(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert all(f"python -m benchmarks {case}" in printed for case in ("plot", "gpu", "profile", "decode"))


def test_contestants_are_those_that_are_measured():
    named = set(re.findall(r"^\| ([^|]+?) \| .* \| .* \|$", PAGE.partition("## How to run")[0], flags=re.MULTILINE))
    titles = {peer.title for peer in PEERS.values()}
    ours = {title for title in titles if title.startswith("ours, ")}
    assert {"floor", "ours", *titles - ours} <= named
    assert all(f"`{title}`" in PAGE for title in ours)
    assert SIZES["2b"].checked_layers == 3


@pytest.mark.parametrize("name", [NAME, gpu.NAME])
def test_tables_are_those_of_the_results(name: str):
    path = ROOT / "docs" / "data" / f"{name}.json"
    prefix = "" if name == NAME else f"{name}/"
    blocks = re.findall(r"<!-- table (\S+) -->\n(.*?)\n<!-- end -->", PAGE, flags=re.DOTALL)
    own = {block: text for block, text in blocks if block.rpartition("/")[0] == prefix.rstrip("/")}
    assert own and {block.removeprefix(prefix) for block in own} <= set(TABLES)
    if path.is_file():
        assert fill(PAGE, name, json.loads(path.read_text())) == PAGE
    else:
        assert set(own.values()) == {NOTHING}


def test_quantized_figures_are_those_of_the_results():
    row = json.loads((ROOT / "docs" / "data" / f"{NAME}.json").read_text())["rows"]["decode-2560x3-bf16"]
    page = (ROOT / "docs" / "quantization.md").read_text()
    for who, words in (("ours", "in bfloat16"), ("ours-int4", "in packed int4"), ("ours-int8", "in int8")):
        found = figures(row, who)
        assert found is not None and re.search(rf"{re.escape(duration(found.median))} (a token )?{words}", page)
