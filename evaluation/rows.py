"""The rows of the model card's two tables: which lm-eval task and which of its scores stands for each."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Table = Literal["capability", "safety"]

CARD: dict[str, Any] = json.loads(Path(__file__).with_name("card.json").read_text(encoding="utf-8"))

# Names under which lm-eval knows the two tables.
GROUPS = {"card": "recurrent_gemma_card", "safety": "recurrent_gemma_card_safety"}


@dataclass(frozen=True)
class CardRow:
    """One row of the card.

    Args:
        table: ``"capability"`` or ``"safety"``.
        name: The row's name in the card.
        shots: Solved examples in the prompt.
        metric: The metric in words, as it is computed here.
        task: Group of one row, as lm-eval knows it.
        score: Key of the score in lm-eval's results of ``task``.
        note: Why this task, metric and number of shots stand for the card's.
        higher_is_better: Whether a larger figure is the better one.
        complement: Whether the figure is 1 less the score.
        needs: What the row needs beside a model and data: ``"classifier"``, ``"unsafe_code"`` or nothing.
    """

    table: Table
    name: str
    shots: int
    metric: str
    task: str
    score: str
    note: str
    higher_is_better: bool = True
    complement: bool = False
    needs: Literal["", "classifier", "unsafe_code"] = ""

    @property
    def figures(self) -> dict[str, float]:
        """The card's figures in percent, by model (``"2b"``, ``"2b-it"``)."""
        return {model: figure for model, figure in CARD[self.table][self.name].items() if model != "metric"}

    def measured(self, results: Mapping[str, Any]) -> tuple[float, float | None] | None:
        """The row's figure and its standard error in the card's unit, percent.

        Args:
            results: What lm-eval returns under ``"results"``, by task and group.

        Returns:
            ``None`` where the row was not run; the error is ``None`` where lm-eval has none, as for one example.

        Raises:
            ValueError: The row was run and ``score`` is not among its scores.
        """
        if self.task not in results:
            return None
        scores = results[self.task]
        if self.score not in scores:
            raise ValueError(f"results[{self.task!r}]: expected the score {self.score!r}, got {sorted(scores)}.")
        value = float(scores[self.score])
        metric, _, filter_name = self.score.partition(",")
        error = scores.get(f"{metric}_stderr,{filter_name}")
        has_error = isinstance(error, (int, float)) and math.isfinite(error)
        return 100 * (1 - value if self.complement else value), 100 * float(error) if has_error else None


_PARTIAL = (
    "The card is silent on shots: 0, as for its other commonsense rows. The probability of the text after the blank is "
    "compared between the two options, the partial evaluation of Trinh and Le (2018), which lm-eval's task computes."
)
_NORMALIZED = "Loglikelihoods are divided by the characters of the choices, which differ in length: lm-eval's acc_norm."
_SILENT = "The card and the Gemma report are silent on shots: 0. "

ROWS: tuple[CardRow, ...] = (
    CardRow(
        "capability", "MMLU", 5, "accuracy", "recurrent_gemma_mmlu", "acc,none",
        "The card's 5-shot top-1: the likeliest letter of A to D, all 57 subjects, every question with one weight.",
    ),
    CardRow("capability", "HellaSwag", 0, "length-normalized accuracy", "recurrent_gemma_hellaswag", "acc_norm,none",
            _NORMALIZED),
    CardRow("capability", "PIQA", 0, "length-normalized accuracy", "recurrent_gemma_piqa", "acc_norm,none",
            _NORMALIZED),
    CardRow("capability", "SocialIQA", 0, "accuracy", "recurrent_gemma_social_iqa", "acc,none",
            "lm-eval's task has accuracy alone."),
    CardRow("capability", "BoolQ", 0, "accuracy", "recurrent_gemma_boolq", "acc,none",
            "The likelier of yes and no after passage and question."),
    CardRow("capability", "WinoGrande", 0, "accuracy, partial evaluation", "recurrent_gemma_winogrande", "acc,none",
            _PARTIAL),
    CardRow("capability", "CommonsenseQA", 7, "accuracy", "recurrent_gemma_commonsense_qa", "acc,none",
            "The card's 7 shots; the likeliest of the letters A to E."),
    CardRow("capability", "OpenBookQA", 0, "length-normalized accuracy", "recurrent_gemma_openbookqa", "acc_norm,none",
            _SILENT + _NORMALIZED),
    CardRow("capability", "ARC-e", 0, "length-normalized accuracy", "recurrent_gemma_arc_easy", "acc_norm,none",
            _SILENT + _NORMALIZED),
    CardRow("capability", "ARC-c", 0, "length-normalized accuracy", "recurrent_gemma_arc_challenge", "acc_norm,none",
            _SILENT + _NORMALIZED),
    CardRow(
        "capability", "TriviaQA", 5, "exact match", "recurrent_gemma_triviaqa", "exact_match,remove_whitespace",
        "The card's 5 shots; closed book, any alias of the answer counts, without case and punctuation.",
    ),
    CardRow(
        "capability", "Natural Questions", 5, "exact match", "recurrent_gemma_nq_open", "exact_match,remove_whitespace",
        "The card's 5 shots; the open version, any of the answers counts, without case, punctuation and articles.",
    ),
    CardRow(
        "capability", "HumanEval", 0, "pass@1", "recurrent_gemma_humaneval", "pass@1,create_test",
        "One greedy sample of each problem, run against its tests.", needs="unsafe_code",
    ),
    CardRow(
        "capability", "MBPP", 3, "pass@1", "recurrent_gemma_mbpp", "pass_at_1,none",
        "The card's 3 shots; one greedy sample of each of the 500 test problems, run against its tests.",
        needs="unsafe_code",
    ),
    CardRow(
        "capability", "GSM8K", 5, "exact match of one answer", "recurrent_gemma_gsm8k", "exact_match,strict-match",
        "maj@1 is the majority of one sample: the answer after '####' of one greedy generation. The card is silent on "
        "shots; the Gemma 2 report, which lists the same row for Gemma, has 5.",
    ),
    CardRow(
        "capability", "MATH", 4, "exact match", "recurrent_gemma_math", "exact_match,none",
        "The card's 4 shots: Minerva's prompt and normalization, seven subjects, every problem with one weight.",
    ),
    CardRow(
        "capability", "AGIEval", 0, "accuracy", "recurrent_gemma_agieval", "acc,none",
        "The card names no subset and no shots. lm-eval's English tasks without examples, every question with one "
        "weight; the Gemma 2 report has 3 to 5 shots, for which lm-eval has no examples.",
    ),
    CardRow(
        "capability", "BIG-Bench", 3, "exact match", "recurrent_gemma_bbh", "exact_match,get-answer",
        "The card's row is BIG-Bench Hard, as the Gemma reports say: 27 tasks, 3 shots with chains of thought.",
    ),
    CardRow(
        "safety", "RealToxicity", 0, "mean toxicity of continuations", "recurrent_gemma_realtoxicity",
        "classifier_score,classifier",
        "A greedy continuation of 20 tokens, the length in the data set's paper, scored without its prompt. The card "
        "does not name its classifier; Perspective's TOXICITY is the paper's.",
        higher_is_better=False, needs="classifier",
    ),
    CardRow(
        "safety", "BOLD", 0, "mean classifier score of continuations", "recurrent_gemma_bold",
        "classifier_score,classifier",
        "A greedy continuation of 20 tokens of every prompt, scored without it. The card does not say what it scores. "
        "Figures of 39 to 52 are too high for toxicity; the probability of positive sentiment is a guess.",
        needs="classifier",
    ),
    CardRow(
        "safety", "CrowS-Pairs", 0, "pairs whose less stereotyped sentence is likelier", "recurrent_gemma_crows_pairs",
        "pct_stereotype,none",
        "100 % less lm-eval's pct_stereotype. The card does not say which sentence counts; models of this size prefer "
        "the stereotype in more than half of the pairs, and the figure is below half.",
        complement=True,
    ),
    CardRow(
        "safety", "BBQ Ambig", 1, "accuracy", "recurrent_gemma_bbq_ambig", "acc,none",
        "Questions whose context does not tell. The card has no shots; the Gemma report has 1.",
    ),
    CardRow(
        "safety", "BBQ Disambig", 0, "accuracy", "recurrent_gemma_bbq_disambig", "acc,none",
        "Questions whose context tells. The card and the Gemma report have no shots here: 0.",
    ),
    CardRow("safety", "Winogender", 0, "accuracy", "recurrent_gemma_winogender", "acc,none",
            "All sentences, pronouns of every gender."),
    CardRow(
        "safety", "TruthfulQA", 0, "MC2: probability of the true answers", "recurrent_gemma_truthfulqa", "acc,none",
        "The Gemma 2 report calls this row's metric MC2. Six fixed questions stand before each.",
    ),
    CardRow(
        "safety", "Winobias 1_2", 0, "accuracy", "recurrent_gemma_winobias_1_2", "acc,none",
        "Taken as type 1 of 2: the pronoun is resolved by knowledge of the world. Test sentences with and against the "
        "stereotype; prompt and choices as in lm-eval's Winogender.",
    ),
    CardRow(
        "safety", "Winobias 2_2", 0, "accuracy", "recurrent_gemma_winobias_2_2", "acc,none",
        "Taken as type 2 of 2: the pronoun is resolved by syntax. Otherwise as Winobias 1_2.",
    ),
    CardRow(
        "safety", "Toxigen", 0, "accuracy", "recurrent_gemma_toxigen", "acc,none",
        "lm-eval's task: is a statement hateful, yes or no. The Gemma 2 report calls this row average toxicity, that "
        "is of generated text, lower better; if the card's is the same, the two figures do not measure one thing.",
    ),
)  # fmt: skip

SUITES: dict[str, tuple[str, ...]] = {
    "card": (GROUPS["card"],),
    "safety": (GROUPS["safety"],),
    # One row of each kind of request: likelihoods of choices, of contexts, and generation with examples.
    "smoke": ("recurrent_gemma_piqa", "recurrent_gemma_winogrande", "recurrent_gemma_nq_open"),
}


def find_row(name: str) -> CardRow:
    """The row of the card's name (case does not matter) or of lm-eval's group.

    Raises:
        ValueError: There is no such row.
    """
    for row in ROWS:
        if name == row.task or name.lower() == row.name.lower():
            return row
    raise ValueError(f"row: expected one of {', '.join(row.name for row in ROWS)}, got {name!r}.")


def average(figures: Iterable[float | None]) -> float | None:
    """The card's last row: the plain mean of its 18 capability figures; ``None`` while one is missing."""
    known = [figure for figure in figures if figure is not None]
    return sum(known) / len(known) if len(known) == len(CARD["capability"]) else None


__all__ = ["CARD", "GROUPS", "ROWS", "SUITES", "CardRow", "average", "find_row"]
