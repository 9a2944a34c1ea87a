"""A language model that knows some answers: each request's text is looked up in what was planted."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from recurrent_gemma.evaluation import load_tasks
from tests.evaluation.answer_keys import AnswerKey, keys_of
from tests.evaluation.make_data import LOCAL_DATA, data_sets
from tests.support import require

lm_eval = require("lm_eval")
LM: Any = require("lm_eval.api.model").LM

LIKELY, UNLIKELY = -0.01, -100.0
# Data sets without gold answers: a classifier scores what is generated.
SCORED = ("allenai/real-toxicity-prompts", "AmazonScience/bold")


class PlantedLM(LM):
    """Finds one continuation of each known prompt likely, and generates it; knows nothing of other prompts.

    Args:
        answers: ``(end of the prompt, continuation)``.
        otherwise: What it generates after other prompts.
    """

    def __init__(self, answers: Iterable[tuple[str, str]], otherwise: str = " I do not know") -> None:
        super().__init__()
        self.answers = list(answers)
        self.otherwise = otherwise
        self.seen: list[tuple[str, Any]] = []

    def _planted(self, context: str) -> list[str]:
        """Continuations planted for the longest end that ``context`` has: the prompt's own."""
        ends = [end for end, _ in self.answers if context.endswith(end)]
        longest = max(ends, key=len, default=None)
        return [answer for end, answer in self.answers if end == longest]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        self.seen += [request.args for request in requests]
        hits = []
        for context, continuation in (request.args for request in requests):
            hits.append(continuation.strip() in {answer.strip() for answer in self._planted(context)})
        return [(LIKELY if hit else UNLIKELY, hit) for hit in hits]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        raise AssertionError("no task of the tables asks for it")

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        self.seen += [request.args for request in requests]
        texts = []
        for context, _ in (request.args for request in requests):
            # A sentence that is scored without a prompt is no continuation of one.
            answers = self._planted(context) if any(context.endswith(end) for end, _ in self.answers if end) else []
            texts.append(answers[0] if answers else self.otherwise)
        return texts


class WordClassifier:
    """Scores a text by the number that it ends with, in per cent."""

    description = "the number at the end"

    def scores(self, texts: Sequence[str]) -> list[float]:
        return [int(text.split()[-1]) / 100 for text in texts]


def evaluated_rows(directory: Path = LOCAL_DATA) -> dict[tuple[str, str | None], list[dict[str, Any]]]:
    """The rows below ``directory`` that are evaluated, by data set and configuration; not those for examples."""
    rows = {}
    for (path, name), splits in data_sets().items():
        split = next(split for split in ("test", "validation", "train") if split in splits)
        file = directory / path.replace("/", "__") / (name or "default") / f"{split}.jsonl"
        rows[path, name] = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return rows


def right(key: AnswerKey) -> tuple[str, str]:
    return key.prompt_end, key.right


def wrong(key: AnswerKey) -> tuple[str, str]:
    return (key.prompt_end if key.wrong_prompt_end is None else key.wrong_prompt_end), key.wrong


def answer_keys(path: str, rows: Iterable[dict[str, Any]]) -> list[AnswerKey]:
    return [] if path in SCORED else [keys_of(path)[0](row) for row in rows]


def run(names: str | Sequence[str], model: LM, *, data_dir: Path = LOCAL_DATA, **options: Any) -> dict[str, Any]:
    """lm-eval's results of ``names`` on local data, by task and group."""
    options = {"classifier": WordClassifier(), "unsafe_code": True, **options}
    loaded = load_tasks(names, data_dir=data_dir, **options)
    done = lm_eval.simple_evaluate(
        model=model,
        tasks=loaded["selected"],
        task_manager=loaded["manager"],
        bootstrap_iters=2,
        log_samples=False,
        confirm_run_unsafe_code=True,
    )
    return done["results"]
