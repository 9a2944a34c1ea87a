"""What pages that speak of other projects rest on: tests of this one, and files of the others at a version."""

import re

from tests.support import ROOT

# A file or a tree at a commit or a release, a commit itself, or a thread, which does not change its subject.
PINNED = re.compile(
    r"https://github\.com/[\w.-]+/[\w.-]+/"
    r"(?:(?:blob|tree)/(?:[0-9a-f]{40}|v\d+\.\d+\.\d+)(?:/\S+)?|commit/[0-9a-f]{40}|(?:pull|issues)/\d+)"
)


def missing_tests(page: str) -> list[str]:
    """Tests that ``page`` names and that are not in the file it links to."""
    named = re.findall(r"\[`(test_\w+)`\]\(\.\./(tests/[^)]+\.py)\)", page)
    assert len(named) == page.count("[`test_"), "a link to a test of another form"
    return [name for name, path in named if not re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE)]


def definitions(page: str) -> dict[str, str]:
    """The labels of ``page``'s sources and where they lead."""
    return dict(re.findall(r"^\[([\w-]+)\]: (\S+)$", page, flags=re.MULTILINE))


def used_labels(page: str) -> set[str]:
    """The labels of sources that ``page``'s text cites."""
    text = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    return set(re.findall(r"\]\s*\[([\w-]+)\]", text))


def tables(page: str) -> list[list[list[str]]]:
    """The cells of every table of ``page``, by row, without the line below its head."""
    found = re.findall(r"(?:^\|.*\|\n)+", page, flags=re.MULTILINE)
    rows = ([[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines()] for table in found)
    return [[row for row in table if not re.fullmatch("-+", row[-1])] for table in rows]
