"""What the model is asked: three tasks to the letter, the others by what the card says of them."""

import pytest

from recurrent_gemma.evaluation import load_tasks
from tests.evaluation.golden_prompts import GOLDEN_PROMPTS, PINNED, prompts_of
from tests.evaluation.make_data import LOCAL_DATA
from tests.evaluation.planted import PlantedLM, run


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
    # The ambiguous questions are examples of one another; without that care, one of three draws is the question itself.
    task = load_tasks("recurrent_gemma_bbq_ambig", data_dir=LOCAL_DATA)["tasks"]["bbq_ambig"]
    for seed in range(10):
        task.set_fewshot_seed(seed)
        for doc in task.eval_docs:
            prompt = task.fewshot_context(doc, num_fewshot=1)
            assert prompt.count("\nQ:") == 2 and prompt.count(doc["context"]) == 1
