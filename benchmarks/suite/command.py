"""``python -m benchmarks``: the suite, row by row, and what it writes."""

import argparse
import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.suite.measure import Case, measure
from benchmarks.suite.page import NAME
from benchmarks.suite.results import Results, load
from benchmarks.suite.rows import ROWS, Row
from benchmarks.timing import free_memory

DOCS = Path(__file__).resolve().parents[2] / "docs"


def add_arguments(parser: argparse.ArgumentParser, rows: Sequence[Row] = ROWS) -> None:
    """The options of a suite."""
    parser.add_argument("--only", nargs="+", choices=[row.name for row in rows], metavar="ROW", help="default: all")
    parser.add_argument("--again", action="store_true", help="measure rows anew that the folder holds already")
    parser.add_argument(
        "--seconds", type=float, help="time of each group of contestants in a row, at most (default: the row's own)"
    )
    parser.add_argument("--quick", action="store_true", help="run everything at a tiny size; figures mean nothing")
    parser.add_argument("--threads", type=int, help="torch's threads (default: torch's own choice)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="for results, pictures and tables (default, of the suite: docs)"
    )


def main(options: argparse.Namespace, environment: dict[str, Any], console: Console) -> int:
    """Measure the rows that the options ask for and the folder does not hold yet; then draw and write tables.

    Returns:
        The exit code: 1 if a row failed, else 0.

    Raises:
        ValueError: A quick run would write to docs, or the folder holds results of another machine.
    """
    if options.quick and options.output is None:
        raise ValueError("output: expected a folder together with --quick, as docs/ holds figures that mean something.")
    rows = [row for row in ROWS if options.only is None or row.name in options.only]
    if options.seconds is not None:
        if not options.seconds > 0:
            raise ValueError(f"seconds: expected more than 0, got {options.seconds}.")
        rows = [dataclasses.replace(row, seconds=min(row.seconds, options.seconds)) for row in rows]
    folder = DOCS if options.output is None else options.output
    return run(rows, folder, NAME, environment, console, quick=options.quick, again=options.again)


def run(
    rows: Sequence[Row],
    folder: Path,
    name: str,
    environment: dict[str, Any],
    console: Console,
    *,
    quick: bool,
    again: bool,
    cases: Mapping[str, Case] | None = None,
) -> int:
    """Measure rows into ``folder/data/NAME.json``, one after the other; see :func:`main`."""
    results = Results(folder / "data" / f"{name}.json", environment, {"quick": quick})
    columns = (SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    failed = []
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(rows))
        for row in rows:
            progress.update(task, description=row.name)
            if again or "failed" in results.rows.get(row.name, {"failed": "not measured yet"}):
                found = _measured(row.quick() if quick else row, cases)
                results.add(row.name, found)
                outcome = f"failed: {found['failed']}" if "failed" in found else f"{found['wall_seconds']:.0f} s"
                console.print(f"{row.name}: {outcome}", highlight=False, soft_wrap=True)
            else:
                console.print(f"{row.name}: kept, measured before", highlight=False)
            if "failed" in results.rows[row.name]:
                failed.append(row.name)
            progress.advance(task)
    write(folder, name, console)
    if failed:
        console.print(f"no result: {', '.join(failed)}", highlight=False)
    return 1 if failed else 0


def write(folder: Path, name: str, console: Console) -> None:
    """Draw the pictures and make the tables of the results in ``folder``.

    Raises:
        FileNotFoundError: There are no results.
    """
    from benchmarks.suite import page, plots  # matplotlib is needed for nothing else here

    path = folder / "data" / f"{name}.json"
    results = load(path)
    written = [path, *plots.draw(folder / "images", name, results), page.write(folder, name, results)]
    console.print("wrote " + ", ".join(str(path) for path in written), highlight=False, soft_wrap=True)


def _measured(row: Row, cases: Mapping[str, Case] | None) -> dict[str, Any]:
    begin, load_average = time.perf_counter(), round(os.getloadavg()[0], 2)
    try:
        found = measure(row, cases)
    except (ValueError, RuntimeError, MemoryError) as error:
        # A row without a result, which the report names, is worth more than a suite that ends here.
        found = {"failed": f"{type(error).__name__}: {error}"}
    free_memory()
    about = {"row": dataclasses.asdict(row), "load_average": load_average}
    return {**about, "wall_seconds": round(time.perf_counter() - begin, 1), **found}
