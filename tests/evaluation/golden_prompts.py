"""The prompts of three tasks as the model reads them, pinned in ``golden_prompts/``.

    python -m tests.evaluation.golden_prompts

writes them anew. A prompt that changes with a release of lm-eval changes the figure, and has to be seen.
"""

from pathlib import Path

from tests.evaluation.planted import PlantedLM, run

GOLDEN_PROMPTS = Path(__file__).with_name("golden_prompts")

# Row's group, and how many of its requests: those of the first task's first document.
PINNED = {"recurrent_gemma_mmlu": 4, "recurrent_gemma_nq_open": 1, "recurrent_gemma_winobias_1_2": 2}


def prompts_of(row: str) -> str:
    """A prompt, and in marks what is scored after it or how text is generated."""
    model = PlantedLM([])
    run(row, model)
    text, before = "", None
    for context, continuation in model.seen[: PINNED[row]]:
        text += ("" if context == before else f"{context}\n") + f"<<<<{continuation!r}>>>>\n"
        before = context
    return text


if __name__ == "__main__":
    GOLDEN_PROMPTS.mkdir(exist_ok=True)
    for name in PINNED:
        (GOLDEN_PROMPTS / f"{name}.txt").write_text(prompts_of(name), encoding="utf-8")
