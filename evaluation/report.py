"""What an evaluation found, next to the card's figures: as JSON, as Markdown and as a chart."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recurrent_gemma.evaluation.chart import draw
from recurrent_gemma.evaluation.rows import CARD, CardRow, average

TITLES = {"capability": "Capability", "safety": "Safety"}
_HEADING = ["row", "shots", "metric", "card", "measured", "standard error", "difference", "examples"]

# What rounding leaves of a figure: a run that went on after a kill sums in another order than one that did not.
_DIGITS = 6


@dataclass(frozen=True)
class RowResult:
    """One row of the card, measured or not; figures are percentages.

    Attributes:
        row: Which one.
        card: The card's figure for the model compared with; None where the card has none.
        measured: The model's.
        standard_error: Of ``measured``; None where lm-eval has none.
        examples: How many were evaluated.
        reason: Why there is no figure; empty where there is one.
    """

    row: CardRow
    card: float | None
    measured: float | None = None
    standard_error: float | None = None
    examples: int = 0
    reason: str = ""

    @property
    def difference(self) -> float | None:
        """``measured`` less the card's figure."""
        return None if self.measured is None or self.card is None else self.measured - self.card


@dataclass(frozen=True)
class OtherResult:
    """Scores of a task of lm-eval's that is no row of the card, as lm-eval gives them."""

    task: str
    scores: dict[str, Any]
    examples: int
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """Everything that one evaluation found.

    Attributes:
        model: Name and identity of the model.
        card_model: Whose figures of the card are compared with: ``"2b"`` or ``"2b-it"``.
        settings: How it was evaluated.
        environment: Versions and hardware.
        rows: Rows of the card, in its order.
        others: Further tasks.
    """

    model: dict[str, Any]
    card_model: str
    settings: dict[str, Any]
    environment: dict[str, str]
    rows: tuple[RowResult, ...] = ()
    others: tuple[OtherResult, ...] = ()
    warnings: tuple[str, ...] = field(default=())

    @property
    def average(self) -> float | None:
        """Mean of the measured capability rows; None while one of the card's 18 is missing."""
        return average([result.measured for result in self.rows if result.row.table == "capability"])

    def as_dict(self) -> dict[str, Any]:
        """The report in JSON's types, figures to six digits."""
        rows = [
            {
                "table": result.row.table,
                "row": result.row.name,
                "shots": result.row.shots,
                "metric": result.row.metric,
                "task": result.row.task,
                "score": result.row.score,
                "card": result.card,
                "measured": result.measured,
                "standard_error": result.standard_error,
                "difference": result.difference,
                "examples": result.examples,
                "reason": result.reason,
            }
            for result in self.rows
        ]
        others = [vars(result) for result in self.others]
        return _rounded(
            {
                "warnings": list(self.warnings),
                "model": self.model,
                "card": {"model": self.card_model, "source": CARD["source"], "url": CARD["url"]},
                "settings": self.settings,
                "environment": self.environment,
                "rows": rows,
                "average": {"card": self.card_average, "measured": self.average},
                "other_tasks": others,
            }
        )

    def markdown(self) -> str:
        """The report for people."""
        parts = [f"# {self.model['name']} beside the model card of RecurrentGemma {self.card_model.upper()}"]
        parts += [f"> **{warning}**" for warning in self.warnings]
        parts.append(f"Figures are percentages. Card: {CARD['source']}, <{CARD['url']}>.")
        for table, title in TITLES.items():
            results = [result for result in self.rows if result.row.table == table]
            if results:
                parts += [f"## {title}", _table(_HEADING, self._lines(table, results))]
        missing = self.without_figure
        if missing:
            parts += ["## Not measured", "\n".join(f"- {_name(result)}: {result.reason}" for result in missing)]
        measured = [result for result in self.others if not result.reason]
        if measured:
            parts += ["## Other tasks", _table(["task", "score", "value", "examples"], _other_lines(measured))]
        if self.rows:
            notes = [f"- {result.row.name} (`{result.row.task}`): {result.row.note}" for result in self.rows]
            parts += ["## What stands for the card's metric", "\n".join(notes)]
        for title, values in (("Model", self.model), ("Settings", self.settings), ("Environment", self.environment)):
            parts += [f"## {title}", _table(["", ""], [[name, _text(value)] for name, value in values.items()])]
        return "\n\n".join(parts) + "\n"

    def write(self, directory: Path) -> None:
        """Write ``results.json``, ``report.md`` and ``chart.svg``; each is at every moment the old one or the new one.

        Raises:
            ImportError: matplotlib is not installed.
            OSError: A file cannot be written.
        """
        directory.mkdir(parents=True, exist_ok=True)
        content = json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n"
        _replace(directory / "results.json", content.encode())
        _replace(directory / "report.md", self.markdown().encode())
        drawn = [result for result in self.rows if result.measured is not None]
        if drawn:
            _replace(directory / "chart.svg", draw(drawn, title=self.model["name"], note=" ".join(self.warnings)))

    @property
    def without_figure(self) -> "list[RowResult | OtherResult]":
        """What was asked for and not measured."""
        results: list[RowResult | OtherResult] = [*self.rows, *self.others]
        return [result for result in results if result.reason]

    @property
    def card_average(self) -> float | None:
        """The card's, of the model compared with."""
        return CARD["average"].get(self.card_model)

    def _lines(self, table: str, results: Sequence[RowResult]) -> list[list[str]]:
        lines = [
            [
                result.row.name,
                str(result.row.shots),
                result.row.metric,
                _figure(result.card),
                _figure(result.measured) or "not measured",
                _figure(result.standard_error),
                _figure(result.difference, sign=True),
                str(result.examples or ""),
            ]
            for result in results
        ]
        if table == "capability" and self.average is not None:
            card = self.card_average
            difference = None if card is None else self.average - card
            lines.append(
                ["**average**", "", "", _figure(card), _figure(self.average), "", _figure(difference, sign=True), ""]
            )
        return lines


def _name(result: RowResult | OtherResult) -> str:
    return result.row.name if isinstance(result, RowResult) else result.task


def _other_lines(results: Sequence[OtherResult]) -> list[list[str]]:
    return [
        [result.task, score, f"{value:.4g}" if isinstance(value, float) else _text(value), str(result.examples)]
        for result in results
        for score, value in sorted(result.scores.items())
    ]


def _figure(value: float | None, *, sign: bool = False) -> str:
    return "" if value is None else f"{value:+.1f}" if sign else f"{value:.1f}"


def _text(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text.replace("|", "\\|")


def _table(heading: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heading, ["---"] * len(heading), *lines])


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        # JSON has no number for what lm-eval gives where there is nothing to average.
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value


def _replace(path: Path, content: bytes) -> None:
    writing = path.with_name(f".{path.name}.writing")
    writing.write_bytes(content)
    os.replace(writing, path)


__all__ = ["OtherResult", "Report", "RowResult"]
