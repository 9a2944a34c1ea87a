"""The results file: rows as they finish, one machine and one set of options; and the ratios that follow from them."""

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.timing import Timing

# What may differ between two parts of one suite.
_PASSING = ("load_average",)


class Results:
    """Rows of the suite in a JSON file.

    Args:
        path: The file. If it is there, its rows are kept and the suite goes on.
        environment: The machine and the versions.
        options: What was asked for, as far as it changes what figures mean.

    Attributes:
        rows: Name -> what was found, or ``failed`` and why.

    Raises:
        ValueError: The file holds rows of another machine, of other versions, or of other options.
    """

    def __init__(self, path: Path, environment: dict[str, Any], options: dict[str, Any]) -> None:
        self.path, self._head = path, {"environment": environment, "options": options}
        self.rows: dict[str, dict[str, Any]] = {}
        if path.is_file():
            stored = json.loads(path.read_text(encoding="utf-8"))
            for part in ("environment", "options"):
                _expect_same(path, part, stored[part], self._head[part])
            self._head["environment"] = stored["environment"]
            self.rows = stored["rows"]

    def add(self, name: str, row: dict[str, Any]) -> None:
        """Keep a row, in the file too, which is at every moment either the old or the new one."""
        self.rows[name] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".writing")
        temporary.write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, self.path)

    def as_dict(self) -> dict[str, Any]:
        """Everything, as the file holds it."""
        return {**self._head, "rows": self.rows}


def load(path: Path) -> dict[str, Any]:
    """What a results file holds.

    Raises:
        FileNotFoundError: There is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected the results of a run, found no file; run the suite with --output.")
    return json.loads(path.read_text(encoding="utf-8"))


def figures(row: dict[str, Any], contestant: str) -> Timing | None:
    """All figures of a contestant, None if the row has none."""
    found = [figure for group in row.get("groups", ()) for figure in group.get(contestant, ())]
    return Timing(tuple(found)) if found else None


def ratio(row: dict[str, Any], contestant: str, over: str) -> Timing | None:
    """One contestant's figures over another's, round by round, from every group that measured both.

    None if there is no such group: one whose ``over`` has a figure of 0 (memory that did not grow by a page) is none.
    """
    found = [
        ratio
        for group in row.get("groups", ())
        if contestant in group and all(group.get(over, [0]))
        for ratio in Timing(tuple(group[contestant])).over(Timing(tuple(group[over]))).seconds
    ]
    return Timing(tuple(found)) if found else None


def _expect_same(path: Path, part: str, stored: dict[str, Any], now: dict[str, Any]) -> None:
    for name in {**stored, **now}:
        if name not in _PASSING and stored.get(name) != now.get(name):
            raise ValueError(
                f"{part}.{name}: expected {stored.get(name)!r}, as {path} has it, got {now.get(name)!r}; rows of one "
                "file are of one machine and one set of options. Give another --output, or remove the file."
            )
