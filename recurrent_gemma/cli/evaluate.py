"""``recurrent-gemma eval``: a model's figures next to the model card's."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from recurrent_gemma.cli.checkpoint import load_tokenizer, open_checkpoint
from recurrent_gemma.cli.errors import CommandError, ExitCode, reported_as

if TYPE_CHECKING:
    from recurrent_gemma.evaluation.report import OtherResult, Report, RowResult


def list_rows() -> None:
    """Print one line a row: table, row, shots, metric, lm-eval's task, the card's figures."""
    from recurrent_gemma.evaluation.rows import ROWS

    cells = [(row.table, row.name, f"{row.shots}-shot", row.metric, row.task, _figures(row.figures)) for row in ROWS]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def evaluate_model(
    model: Path,
    *,
    output: Path | None,
    dtype: str | None,
    device: str | None,
    classifiers: Sequence[str],
    classifier_labels: Sequence[str],
    debug: bool,
    **options: Any,
) -> None:
    """Evaluate a checkpoint and print the table; results as they come, and progress, go to stderr.

    Args:
        model: Checkpoint directory.
        output: Where the report goes; None: ``eval-NAME`` in the current directory.
        dtype: Dtype of the weights; None: the checkpoint's.
        device: Where to run; None: an accelerator if there is one.
        classifiers: ``DIR`` or ``perspective``, for one row only where ``ROW=`` stands before it.
        classifier_labels: The label whose probability is the score, in the same way.
        debug: Whether lm-eval's warnings are shown.
        **options: As ``recurrent_gemma.evaluation.run.evaluate`` takes them.

    Raises:
        CommandError: The checkpoint is missing, of another architecture, or broken; an option has no such value.
        ImportError: lm-eval or matplotlib is not installed.
    """
    from recurrent_gemma.evaluation.requirements import require_lm_eval
    from recurrent_gemma.evaluation.run import LoadedModel, OptionError, evaluate, load_model, units_of

    checkpoint = open_checkpoint(model)
    require_lm_eval()
    if not debug:
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        units_of(options["suite"], options["tasks"])
        judges = _classifiers(classifiers, classifier_labels)
        load_tokenizer(checkpoint)
        with reported_as(ExitCode.BROKEN, f"{model}: the weights do not load"):
            loaded: LoadedModel = load_model(model, dtype=dtype, device=device)
        folder = output or Path(f"eval-{loaded.name}")
        report = evaluate(
            loaded,
            output=folder,
            classifier=judges,
            on_result=_say,
            **options,
        )
    except OptionError as error:
        raise CommandError(str(error), ExitCode.USAGE) from error
    _print(report)
    print(f"Report: {folder / 'report.md'}")


def _classifiers(names: Sequence[str], labels: Sequence[str]) -> Any:
    """The classifier of each row that has one: ``DIR`` or ``perspective`` for all, or ``ROW=DIR`` for one."""
    from recurrent_gemma.evaluation.classifier import LocalClassifier, PerspectiveClassifier
    from recurrent_gemma.evaluation.rows import ROWS

    rows = {row.name.lower(): row.task for row in ROWS if row.needs == "classifier"}
    named, labelled = _by_row("--classifier", names, rows), _by_row("--classifier-label", labels, rows)
    alone = [row for row in labelled if row not in named]
    if alone:
        raise CommandError(f"--classifier-label: goes with --classifier, got it alone for {alone[0]}", ExitCode.USAGE)
    made: dict[str, Any] = {}
    for row, name in named.items():
        label = labelled.get(row)
        try:
            if name == "perspective":
                made[row] = PerspectiveClassifier() if label is None else PerspectiveClassifier(attribute=label)
            elif label is None:
                raise ValueError("expected with a directory, got none; its config.json names its labels")
            else:
                made[row] = LocalClassifier(name, label=label)
        except ValueError as error:
            option = "--classifier-label" if label is None and name != "perspective" else "--classifier"
            raise CommandError(f"{option}: {error}", ExitCode.USAGE) from error
    return made or None


def _by_row(option: str, values: Sequence[str], rows: dict[str, str]) -> dict[str, str]:
    found = {}
    for value in values:
        row, equals, rest = value.partition("=")
        if equals and row.lower() not in rows:
            raise CommandError(f"{option}: expected one of {', '.join(rows)} before '=', got {row!r}", ExitCode.USAGE)
        found.update({rows[row.lower()]: rest} if equals else dict.fromkeys(rows.values(), value))
    return found


def _figures(figures: dict[str, float]) -> str:
    return " / ".join(f"{model} {figure:.1f}" for model, figure in figures.items())


def _say(result: "RowResult | OtherResult") -> None:
    from recurrent_gemma.evaluation.report import OtherResult

    if isinstance(result, OtherResult):
        print(f"{result.task}: {result.reason or 'done'}", file=sys.stderr)
    elif result.measured is None:
        print(f"{result.row.name}: not measured: {result.reason}", file=sys.stderr)
    else:
        card = "" if result.card is None else f" (card {result.card:.1f})"
        print(f"{result.row.name}: {result.measured:.1f}{card}", file=sys.stderr)


def _print(report: "Report") -> None:
    from recurrent_gemma.evaluation.report import TITLES

    console = Console()
    for name, title in TITLES.items():
        results = [result for result in report.rows if result.row.table == name]
        if not results:
            continue
        table = Table(title=Text(f"{report.model['name']}: {title}"), title_justify="left")
        table.add_column("row", no_wrap=True)
        for heading in ("shots", f"card {report.card_model}", "measured", "error", "difference"):
            table.add_column(heading, justify="right", no_wrap=True)
        for result in results:
            measured = "not measured" if result.measured is None else result.measured
            found = (result.card, measured, result.standard_error)
            table.add_row(result.row.name, str(result.row.shots), *map(_figure, found), _signed(result.difference))
        if name == "capability" and report.average is not None:
            table.add_row("average", "", _figure(report.card_average), _figure(report.average))
        console.print(table)
    for other in report.others:
        for score, value in sorted(other.scores.items()):
            print(f"{other.task}  {score}  {value:.4g}")
    missing = report.without_figure
    if missing:
        print("Not measured; --classifier, --allow-code-execution and --data-dir may help:")
    for absent in missing:
        print(f"  {_name(absent)}: {absent.reason}")
    for warning in report.warnings:
        print(f"NOTE: {warning}")


def _figure(value: "float | str | None") -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.1f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}"


def _name(result: "RowResult | OtherResult") -> str:
    return result.task if hasattr(result, "task") else result.row.name


__all__ = ["evaluate_model", "list_rows"]
