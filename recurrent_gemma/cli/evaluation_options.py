"""The options of ``recurrent-gemma eval``, and what their values may be."""

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Suite(str, Enum):
    """What an evaluation runs."""

    CARD = "card"
    SAFETY = "safety"
    SMOKE = "smoke"


class CardModel(str, Enum):
    """Models that the card has figures of."""

    BASE = "2b"
    INSTRUCTION_TUNED = "2b-it"


def _batch_size(value: str) -> str:
    if value != "auto" and not (value.isdecimal() and int(value) >= 1):
        raise typer.BadParameter(f"expected at least 1 or 'auto', got {value!r}.")
    return value


def split_names(values: Sequence[str] | None) -> list[str] | None:
    """Names that were given one by one, with commas between, or both ways."""
    return None if values is None else [name.strip() for value in values for name in value.split(",")]


SuiteOption = Annotated[Suite, typer.Option(help="One of the card's tables, or three quick rows.")]
TasksOption = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME,...", help="In place of a suite: rows of the card, or lm-eval's own tasks."),
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Examples of each task at most, to try things out.")]
BatchSizeOption = Annotated[
    str, typer.Option(metavar="N|auto", callback=_batch_size, help="Rows of a forward pass; figures do not change.")
]
OutputOption = Annotated[Path | None, typer.Option(metavar="DIR", help="Where the report goes. Default: eval-NAME.")]
DataDirOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", exists=True, file_okay=False, help="Local files in place of data sets from the Hub."),
]
CardOption = Annotated[
    CardModel | None,
    typer.Option(help="Whose figures to compare with. Default: by the word it in MODEL's name."),
]
ChatTemplateOption = Annotated[
    bool | None,
    typer.Option("--chat-template/--no-chat-template", help="Put prompts into turns of a chat. Default: with 2b-it."),
]
ClassifierOption = Annotated[
    list[str] | None,
    typer.Option(metavar="[ROW=]DIR", help="What scores RealToxicity and BOLD: a model, or perspective."),
]
ClassifierLabelOption = Annotated[
    list[str] | None, typer.Option(metavar="[ROW=]LABEL", help="Its label whose probability is the score.")
]
CodeOption = Annotated[
    bool, typer.Option("--allow-code-execution", help="Run programs that MODEL writes: HumanEval, MBPP.")
]
NoSharedContextsOption = Annotated[
    bool, typer.Option("--no-shared-contexts", help="Read a context again for each of its choices.")
]
EvaluationSeedOption = Annotated[
    int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of few-shot examples and sampled answers.")
]


__all__ = [
    "BatchSizeOption",
    "CardModel",
    "CardOption",
    "ChatTemplateOption",
    "ClassifierLabelOption",
    "ClassifierOption",
    "CodeOption",
    "DataDirOption",
    "EvaluationSeedOption",
    "LimitOption",
    "NoSharedContextsOption",
    "OutputOption",
    "Suite",
    "SuiteOption",
    "TasksOption",
    "split_names",
]
