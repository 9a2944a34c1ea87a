"""A model with planted answers gets the score that was planted, in every task, and not when the gold answers change."""

import json
from pathlib import Path
from typing import Any

import pytest

from recurrent_gemma.evaluation import GROUPS, ROWS, CardRow, load_tasks
from tests.evaluation.answer_keys import keys_of
from tests.evaluation.make_data import LOCAL_DATA, data_sets, write_data
from tests.evaluation.planted import SCORED, PlantedLM, WordClassifier, answer_keys, evaluated_rows, right, run, wrong

TABLES = list(GROUPS.values())
WITH_GOLD = [row for row in ROWS if row.needs != "classifier"]


def _planted(known: int | None, *, otherwise: str) -> PlantedLM:
    """Right about the first ``known`` rows of each data set and wrong about the others; ``None``: right about all."""
    answers = []
    for (path, _), rows in evaluated_rows().items():
        keys = answer_keys(path, rows)
        answers += [right(key) if known is None or n < known else wrong(key) for n, key in enumerate(keys)]
    return PlantedLM(answers, otherwise)


@pytest.fixture(scope="module")
def all_right() -> dict[str, Any]:
    return run(TABLES, _planted(None, otherwise=" 100"))


@pytest.fixture(scope="module")
def all_wrong() -> dict[str, Any]:
    return run(TABLES, _planted(0, otherwise=" 0"))


@pytest.fixture(scope="module")
def some_right() -> dict[str, Any]:
    return run(TABLES, _planted(1, otherwise=" 37"))


@pytest.fixture(scope="module")
def leaves() -> dict[str, list[Any]]:
    loaded = load_tasks(TABLES, data_dir=LOCAL_DATA, classifier=WordClassifier(), unsafe_code=True)
    return {row.task: loaded["groups"][row.task].get_all_tasks() for row in ROWS}


def _scores(row: CardRow, results: dict[str, Any], leaves: dict[str, list[Any]]) -> list[float]:
    """The row's figure by each of its tasks alone, in the card's unit."""
    scores = [results[task.task_name][row.score] for task in leaves[row.task]]
    return [100 * (1 - score if row.complement else score) for score in scores]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_answer_right(row: CardRow, all_right: dict[str, Any], leaves: dict[str, list[Any]]):
    assert row.measured(all_right)[0] == pytest.approx(100)
    assert _scores(row, all_right, leaves) == pytest.approx([100] * len(leaves[row.task]))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_answer_wrong(row: CardRow, all_wrong: dict[str, Any], leaves: dict[str, list[Any]]):
    assert row.measured(all_wrong)[0] == pytest.approx(0, abs=1e-9)
    assert _scores(row, all_wrong, leaves) == pytest.approx([0] * len(leaves[row.task]), abs=1e-9)


# One row of each data set is answered right: what share of the row's documents those are.
ONE_OF = {
    **{row.name: 1 / 4 for row in ROWS},
    "CommonsenseQA": 1 / 3,
    "MMLU": 1 / 3,
    "MATH": 1 / 3,
    "AGIEval": 1 / 3,
    "BIG-Bench": 1 / 3,
    "Winobias 1_2": 1 / 3,
    "Winobias 2_2": 1 / 3,
    "Winogender": 1 / 6,
    # The first row is an ambiguous one; half of the six rows are.
    "BBQ Ambig": 1 / 3,
    "BBQ Disambig": 0,
    "RealToxicity": 0.37,
    "BOLD": 0.37,
}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_one_answer_right(row: CardRow, some_right: dict[str, Any], leaves: dict[str, list[Any]]):
    figure, error = row.measured(some_right)
    assert figure == pytest.approx(100 * ONE_OF[row.name])
    assert _scores(row, some_right, leaves) == pytest.approx([100 * ONE_OF[row.name]] * len(leaves[row.task]))
    assert error is not None and (error > 1e-9) == (row.name not in ("BBQ Disambig", "RealToxicity", "BOLD"))


@pytest.fixture(scope="module")
def moved_gold(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of the model that was right about all, on rows whose gold answers were changed after it learned them."""
    directory = tmp_path_factory.mktemp("moved") / "data"
    write_data(directory)
    for (path, name), rows in evaluated_rows().items():
        if path not in SCORED:
            moved = [keys_of(path)[1](row) for row in rows]
            assert all(new != old for new, old in zip(moved, rows, strict=True)), path
            _overwrite(directory, path, name, moved)
    return run(TABLES, _planted(None, otherwise=" 100"), data_dir=directory)


def _overwrite(directory: Path, path: str, name: str | None, rows: list[dict[str, Any]]) -> None:
    split = next(split for split in ("test", "validation") if split in data_sets()[path, name])
    file = directory / path.replace("/", "__") / (name or "default") / f"{split}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.mark.parametrize("row", WITH_GOLD, ids=lambda row: row.name)
def test_the_score_follows_the_gold_answers(
    row: CardRow, moved_gold: dict[str, Any], all_right: dict[str, Any], leaves: dict[str, list[Any]]
):
    assert row.measured(all_right)[0] == pytest.approx(100)
    assert row.measured(moved_gold)[0] == pytest.approx(0, abs=1e-9)
    assert _scores(row, moved_gold, leaves) == pytest.approx([0] * len(leaves[row.task]), abs=1e-9)


def test_more_than_one_candidate_of_truth_shares_the_mass():
    # MC2 of a model that finds one true and one false answer equally likely.
    answers = []
    for row in evaluated_rows()["truthfulqa/truthful_qa", "multiple_choice"]:
        key = keys_of("truthfulqa/truthful_qa")[0](row)
        answers += [right(key), wrong(key)]
    results = run("recurrent_gemma_truthfulqa", PlantedLM(answers))
    assert results["recurrent_gemma_truthfulqa"]["acc,none"] == pytest.approx(0.5)


def test_gsm8k_reads_the_answer_after_the_marks_alone():
    rows = evaluated_rows()["openai/gsm8k", "main"]
    prompts = [f"Question: {row['question']}\nAnswer:" for row in rows]
    numbers = [row["answer"].rsplit("#### ", 1)[1] for row in rows]
    # Right without marks; right with marks, currency and a full stop.
    texts = [f" It is {numbers[0]}.", f" #### {numbers[1]}", f" #### {numbers[2]}.", f" 5 #### {numbers[3]}\nmore"]
    results = run("recurrent_gemma_gsm8k", PlantedLM(zip(prompts, texts, strict=True)))
    assert results["recurrent_gemma_gsm8k"]["exact_match,strict-match"] == pytest.approx(0.75)
