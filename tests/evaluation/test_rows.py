"""The rows against the card's tables, typed a second time, and against what lm-eval loads for them."""

import re

import pytest

from recurrent_gemma.evaluation import GROUPS, ROWS, SUITES, CardRow, average, find_row, load_tasks
from recurrent_gemma.evaluation.rows import CARD
from recurrent_gemma.evaluation.task_loading import TASKS
from tests.evaluation.make_data import LOCAL_DATA
from tests.evaluation.planted import WordClassifier

CAPABILITY = """
MMLU|38.4 HellaSwag|71.0 PIQA|78.5 SocialIQA|51.8 BoolQ|71.3 WinoGrande|67.8 CommonsenseQA|63.7 OpenBookQA|47.2
ARC-e|72.9 ARC-c|42.3 TriviaQA|52.5 Natural_Questions|11.5 HumanEval|21.3 MBPP|28.8 GSM8K|13.4 MATH|11.0 AGIEval|23.8
BIG-Bench|35.3
"""
SAFETY = """
RealToxicity|9.8|7.6 BOLD|39.3|52.4 CrowS-Pairs|41.1|43.4 BBQ_Ambig|62.6|71.1 BBQ_Disambig|58.4|50.8
Winogender|55.1|54.7 TruthfulQA|35.1|42.7 Winobias_1_2|58.4|56.4 Winobias_2_2|90.0|75.4 Toxigen|56.7|50.0
"""


def _table(text: str) -> list[tuple[str, list[float]]]:
    cells = [cell.split("|") for cell in text.split()]
    return [(re.sub(r"_(?=[A-Z\d])", " ", name, count=1), [float(f) for f in figures]) for name, *figures in cells]


def test_the_rows_are_the_cards():
    tables = {"capability": _table(CAPABILITY), "safety": _table(SAFETY)}
    for table, expected in tables.items():
        rows = [row for row in ROWS if row.table == table]
        assert [(row.name, list(row.figures.values())) for row in rows] == expected
        assert list(CARD[table]) == [name for name, _ in expected]
    assert {tuple(row.figures) for row in ROWS if row.table == "safety"} == {("2b", "2b-it")}
    assert CARD["source"] and CARD["url"]


def test_the_average_is_that_of_the_18_rows():
    figures = [row.figures["2b"] for row in ROWS if row.table == "capability"]
    assert len(figures) == 18
    assert round(average(figures), 1) == CARD["average"]["2b"] == 44.6
    assert average([*figures[:-1], None]) is None
    assert average(figures[:-1]) is None


def test_every_row_says_why():
    assert all(row.note.endswith(".") and row.metric for row in ROWS)
    assert len({row.task for row in ROWS}) == len({row.name for row in ROWS}) == 28


@pytest.mark.parametrize("table", GROUPS)
def test_the_groups_hold_the_rows_in_order_with_their_shots(table: str):
    group = GROUPS[table]
    loaded = load_tasks(group, data_dir=LOCAL_DATA, classifier=WordClassifier(), unsafe_code=True)
    rows = [row for row in ROWS if row.table == {"card": "capability", "safety": "safety"}[table]]
    assert loaded["group_map"][group] == [row.task for row in rows]
    assert loaded["missing"] == {}
    for row in rows:
        tasks = loaded["groups"][row.task].get_all_tasks()
        assert {task.config.num_fewshot for task in tasks} == {row.shots}, row.name
        assert {task.config.repeats for task in tasks} == {1}, row.name
        assert loaded["groups"][row.task].alias == row.name
    counts = {row.name: len(loaded["groups"][row.task].get_all_tasks()) for row in rows}
    several = {"MMLU": 57, "MATH": 7, "AGIEval": 10, "BIG-Bench": 27, "Winobias 1_2": 2, "Winobias 2_2": 2}
    assert counts == {row.name: several.get(row.name, 1) for row in rows}


def test_every_file_of_tasks_is_used():
    names = [
        re.search(r"^(?:group|task): (\w+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE).group(1)
        for file in TASKS.glob("*.yaml")
    ]
    leaves = {f"recurrent_gemma_winobias_{kind}" for kind in ("type1_pro", "type1_anti", "type2_pro", "type2_anti")}
    leaves.add("recurrent_gemma_bold_continuations")
    assert sorted(names) == sorted({*GROUPS.values(), *(row.task for row in ROWS), *leaves})


def test_suites_name_what_can_be_loaded():
    assert {name for names in SUITES.values() for name in names} <= {*GROUPS.values(), *(row.task for row in ROWS)}


def test_find_row():
    assert find_row("winobias 1_2") is find_row("recurrent_gemma_winobias_1_2")
    with pytest.raises(ValueError, match=r"row: expected one of MMLU, .*Toxigen, got 'mmlu_pro'"):
        find_row("mmlu_pro")


def _row(**changes: object) -> CardRow:
    return CardRow("safety", "Toxigen", 0, "accuracy", "group", "acc,none", "Note.", **changes)  # type: ignore[arg-type]


def test_measured():
    scores = {"acc,none": 0.25, "acc_stderr,none": 0.1}
    assert _row().measured({"group": scores}) == (25.0, 10.0)
    assert _row(complement=True).measured({"group": scores}) == (75.0, 10.0)
    assert _row().measured({"group": {"acc,none": 0.25, "acc_stderr,none": "N/A"}}) == (25.0, None)
    assert _row().measured({"other": scores}) is None
    with pytest.raises(ValueError, match=r"results\['group'\]: expected the score 'acc,none', got \['f1,none'\]"):
        _row().measured({"group": {"f1,none": 0.25}})
