"""``recurrent-gemma eval`` names every row, with a figure or the reason why there is none; a failure is one line."""

import re
import sys
from pathlib import Path

import pytest

import recurrent_gemma
from recurrent_gemma.cli import app
from recurrent_gemma.cli.errors import ExitCode
from recurrent_gemma.evaluation.rows import ROWS
from tests.evaluation.small_classifier import save_classifier
from tests.support import ROOT, require

DEMO = str(recurrent_gemma.demo_path())
DATA = str(ROOT / "tests" / "evaluation" / "local_data")


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = app.run(["eval", *arguments])
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return code, captured.err


def test_the_list_has_one_line_a_row(capsys: pytest.CaptureFixture[str]):
    assert app.run(["eval", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(ROWS) == 28
    for line, row in zip(lines, ROWS, strict=True):
        assert line.startswith(row.table)
        for part in (row.name, f"{row.shots}-shot", row.metric, row.task, *map(str, row.figures.values())):
            assert f" {part}" in line
    assert len({line.index("recurrent_gemma_") for line in lines}) == 1


def test_the_table_names_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    require("lm_eval")
    output = tmp_path / "report"
    arguments = ["--suite", "smoke", "--data-dir", DATA, "--limit", "2", "--output", str(output), "--device", "cpu"]
    assert app.run(["eval", DEMO, *arguments]) == 0
    captured = capsys.readouterr()
    for name in ("PIQA", "WinoGrande", "Natural Questions"):
        assert name in captured.out and f"{name}: " in captured.err
    assert "NOTE: Limited to the first 2 examples of each task" in captured.out
    assert f"Report: {output / 'report.md'}" in captured.out
    assert (output / "chart.svg").is_file()


def test_rows_without_a_figure_are_listed_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    require("lm_eval")
    arguments = ["--tasks", "PIQA, HumanEval", "--data-dir", DATA, "--output", str(tmp_path), "--device", "cpu"]
    assert app.run(["eval", DEMO, *arguments]) == 0
    out = capsys.readouterr().out
    assert "not measured" in out and "HumanEval: runs programs that the model writes" in " ".join(out.split())
    assert "--allow-code-execution" in out


# Of BBQ, lm-eval also scores categories that one example does not have.
@pytest.mark.filterwarnings(
    "ignore:Mean of empty slice:RuntimeWarning", "ignore:invalid value encountered:RuntimeWarning"
)
@pytest.mark.parametrize(
    ("suite", "table"), [pytest.param("card", "capability", marks=pytest.mark.slow), ("safety", "safety")]
)
def test_every_row_of_the_card_gets_a_figure(
    suite: str, table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    require("lm_eval")
    classifier = save_classifier(tmp_path / "classifier")
    arguments = ["--suite", suite, "--data-dir", DATA, "--limit", "1", "--output", str(tmp_path / "report")]
    arguments += ["--classifier", str(classifier), "--classifier-label", "toxic", "--allow-code-execution"]
    assert app.run(["eval", DEMO, *arguments, "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    for row in (row for row in ROWS if row.table == table):
        # Heading and cells are parted by lines; the card's figure and the measured one are both there.
        assert re.search(
            rf"^│ {re.escape(row.name)} +│ +{row.shots} │ +{row.figures['2b']} │ +\d+\.\d │", captured.out, re.M
        )
        assert f"{row.name}: " in captured.err
    assert "not measured" not in captured.out.lower() and ("average" in captured.out) == (table == "capability")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], ExitCode.USAGE, "Missing argument 'MODEL'."),
        (["nowhere"], ExitCode.NOT_FOUND, "nowhere: no such directory"),
        ([DEMO, "--suite", "cards"], ExitCode.USAGE, "--suite"),
        ([DEMO, "--batch-size", "0"], ExitCode.USAGE, "expected at least 1 or 'auto', got '0'"),
        ([DEMO, "--limit", "0"], ExitCode.USAGE, "--limit"),
        ([DEMO, "--tasks", "PIQA,piqa"], ExitCode.USAGE, "tasks: expected each once"),
        ([DEMO, "--data-dir", "nowhere"], ExitCode.USAGE, "--data-dir"),
        ([DEMO, "--classifier-label", "toxic"], ExitCode.USAGE, "--classifier-label: goes with --classifier"),
        ([DEMO, "--classifier", DEMO], ExitCode.USAGE, "--classifier-label: expected with a directory"),
        ([DEMO, "--classifier", DEMO, "--classifier-label", "x"], ExitCode.USAGE, "--classifier: "),
        ([DEMO, "--classifier", "PIQA=DIR"], ExitCode.USAGE, "expected one of realtoxicity, bold before '='"),
    ],
)
def test_failures_are_one_line(
    arguments: list[str],
    code: ExitCode,
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    require("lm_eval")
    monkeypatch.chdir(tmp_path)
    found, line = failure(capsys, *arguments)
    assert found == code
    assert line.startswith("recurrent-gemma: error: ") and message in line
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, line = failure(capsys, DEMO)
    assert code == ExitCode.UNEXPECTED and 'pip install "recurrent-gemma[eval]"' in line
    assert app.run(["eval", "--list"]) == 0


def test_a_task_that_is_not_of_the_card_is_printed_with_its_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    require("lm_eval")
    arguments = ["--tasks", "arc_easy", "--data-dir", str(DATA), "--limit", "2", "--output", str(tmp_path / "out")]
    assert app.run(["eval", "--device", "cpu", *arguments, str(recurrent_gemma.demo_path())]) == 0
    captured = capsys.readouterr()
    assert "arc_easy: done" in captured.err
    assert re.search(r"^arc_easy  acc_norm,none  [\d.e-]+$", captured.out, flags=re.MULTILINE)


def test_perspective_needs_its_key_and_takes_an_attribute(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    require("lm_eval")
    monkeypatch.delenv("PERSPECTIVE_API_KEY", raising=False)
    for label in ([], ["--classifier-label", "RealToxicity=INSULT"]):
        arguments = ["--tasks", "RealToxicity", "--classifier", "RealToxicity=perspective", *label]
        assert app.run(
            ["eval", "--device", "cpu", "--output", str(tmp_path), *arguments, str(recurrent_gemma.demo_path())]
        )
        assert "PERSPECTIVE_API_KEY" in capsys.readouterr().err
