"""What the model is asked: three tasks to the letter, the others by what the card says of them."""

from typing import Any

import pytest

from tests.evaluation.golden_prompts import GOLDEN_PROMPTS, PINNED, prompts_of
from tests.evaluation.planted import PlantedLM, evaluated_rows, run


@pytest.mark.parametrize("row", PINNED)
def test_pinned_prompts(row: str):
    assert prompts_of(row) == (GOLDEN_PROMPTS / f"{row}.txt").read_text(encoding="utf-8")


def _contexts(row: str) -> list[str]:
    model = PlantedLM([])
    run(row, model)
    return [context for context, _ in model.seen]


@pytest.mark.parametrize(
    ("row", "mark", "questions"),
    [
        ("recurrent_gemma_mmlu", "\nAnswer:", 6),
        ("recurrent_gemma_commonsense_qa", "\nAnswer:", 8),
        ("recurrent_gemma_triviaqa", "\nAnswer:", 6),
        ("recurrent_gemma_gsm8k", "\nAnswer:", 6),
        ("recurrent_gemma_mbpp", "[BEGIN]", 4),
        ("recurrent_gemma_math", "\nSolution:", 5),
        ("recurrent_gemma_bbh", "Let's think step by step.", 4),
        ("recurrent_gemma_bbq_ambig", "\nQ:", 2),
        ("recurrent_gemma_bbq_disambig", "\nQ:", 1),
        ("recurrent_gemma_piqa", "\nAnswer:", 1),
    ],
)
def test_prompts_hold_as_many_examples_as_the_row_has_shots(row: str, mark: str, questions: int):
    assert {context.count(mark) for context in _contexts(row)} == {questions}


def test_no_question_is_its_own_example():
    # The ambiguous questions are examples of one another.
    contexts = _contexts("recurrent_gemma_bbq_ambig")
    for row in evaluated_rows()["oskarvanderwal/bbq", "All"]:
        if row["context_condition"] == "ambig":
            asked = [text for text in contexts if text.endswith(_last(row))]
            assert asked and all(text.count(row["context"]) == 1 for text in asked)


def _last(row: dict[str, Any]) -> str:
    return f"{row['context']}\n\nQ: {row['question']}\nA:"
