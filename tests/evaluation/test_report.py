"""The report: every row by name, differences, reasons, the average, and files that are whole at every moment."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from recurrent_gemma.evaluation import report as report_module
from recurrent_gemma.evaluation.report import OtherResult, Report, RowResult
from recurrent_gemma.evaluation.rows import CARD, ROWS
from tests.support import require


def make_report(*results: RowResult, **fields) -> Report:
    return Report(
        model={"name": "a-model", "dtype": "float32"},
        card_model="2b",
        settings={"limit": None, "tasks": ["a", "b|c"]},
        environment={"torch": "2"},
        rows=results,
        **fields,
    )


def result_of(index: int, measured: float | None = 50.0, **fields) -> RowResult:
    return RowResult(ROWS[index], ROWS[index].figures["2b"], measured, **fields)


def cells(markdown: str, row: str) -> list[str]:
    (line,) = re.findall(rf"^\| {re.escape(row)} \|.*\|$", markdown, flags=re.MULTILINE)
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_measured_row_stands_next_to_the_cards_figure():
    page = make_report(result_of(0, 40.16, standard_error=0.32, examples=14_042)).markdown()
    assert cells(page, "MMLU") == ["MMLU", "5", ROWS[0].metric, "38.4", "40.2", "0.3", "+1.8", "14042"]
    assert ROWS[0].note in page
    assert "not measured" not in page.lower()


def test_a_row_without_a_figure_says_why():
    page = make_report(RowResult(ROWS[12], 21.3, reason="programs may not be run")).markdown()
    assert cells(page, "HumanEval")[3:] == ["21.3", "not measured", "", "", ""]
    assert "- HumanEval: programs may not be run" in page


def test_a_row_that_the_card_lacks_for_this_model_has_no_difference():
    result = RowResult(ROWS[0], ROWS[0].figures.get("2b-it"), 40.0)
    assert result.card is None and result.difference is None
    assert cells(make_report(result).markdown(), "MMLU")[3:7] == ["", "40.0", "", ""]


def test_the_average_needs_all_18_rows():
    capability = [index for index, row in enumerate(ROWS) if row.table == "capability"]
    results = [result_of(index, 50.0 + index) for index in capability]
    whole = make_report(*results)
    assert len(results) == 18 and whole.average == pytest.approx(50 + 17 / 2)
    assert cells(whole.markdown(), "**average**")[3:7] == ["44.6", "58.5", "", "+13.9"]
    assert whole.as_dict()["average"] == {"card": CARD["average"]["2b"], "measured": 58.5}
    assert make_report(*results[1:]).average is None
    partial = make_report(result_of(0, None, reason="no data"), *results[1:])
    assert partial.average is None and "**average**" not in partial.markdown()


def test_warnings_come_before_any_figure():
    page = make_report(result_of(0), warnings=("Limited to 2 examples: not comparable.",)).markdown()
    assert page.index("> **Limited to 2 examples: not comparable.**") < page.index("| MMLU |")


def test_other_tasks_have_their_scores():
    others = (OtherResult("mine", {"acc,none": 0.25, "ppl,none": 12.3456}, 4), OtherResult("lost", {}, 0, "no file"))
    page = make_report(others=others).markdown()
    assert "| mine | acc,none | 0.25 | 4 |" in page and "| mine | ppl,none | 12.35 | 4 |" in page
    assert "- lost: no file" in page
    assert "b\\|c" in page  # A bar in a setting makes no column.


def test_json_keeps_six_digits(tmp_path: Path):
    require("matplotlib")
    others = (OtherResult("mine", {"acc,none": float("nan")}, 1),)
    make_report(result_of(0, 40.123456789, standard_error=1 / 3), others=others).write(tmp_path)
    stored = json.loads((tmp_path / "results.json").read_text())
    (row,) = stored["rows"]
    assert stored["other_tasks"][0]["scores"] == {"acc,none": None}
    assert (row["row"], row["measured"], row["standard_error"], row["difference"]) == (
        "MMLU",
        40.1235,
        0.333333,
        1.72346,
    )


def test_the_chart_is_the_same_file_every_time(tmp_path: Path):
    require("matplotlib")
    written = []
    for folder in ("a", "b"):
        make_report(*map(result_of, range(len(ROWS))), warnings=("Not comparable.",)).write(tmp_path / folder)
        written.append((tmp_path / folder / "chart.svg").read_bytes())
    assert written[0] == written[1]
    assert ElementTree.fromstring(written[0]).tag.endswith("svg")


def test_a_report_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    require("matplotlib")
    make_report(result_of(0)).write(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"results.json", "report.md", "chart.svg"}

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(report_module.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        make_report(result_of(1)).write(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
