"""docs/troubleshooting.md holds true: what it quotes is in the sources, and what the sources raise is on it.

A message is compared by its text with ``…`` in place of what an f-string inserts.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from recurrent_gemma.cli.errors import EPILOG, ExitCode
from tests.support import LINKS, ROOT, source

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
TABLES = PAGE.partition("## Installation")[2]
QUOTES = re.findall(r"^\| `([^`]+)` \|", TABLES, flags=re.MULTILINE)
# Every message that these raise to their users is quoted.
COMPLETE = ("configuration", "modeling", "tokenization", "training")
FOLDERS = (*LINKS, "recurrent_gemma")
INSERTED = "…"

# Messages of COMPLETE that the page leaves out, by their beginning.
ELSEWHERE = {
    "…, got others; leave cu_seq_lens_k out.": "begins with what is quoted, cu_seq_lens_k",
    "…, got … at …; ….": "begins with what its callers expect, each of which is quoted",
    "… object has no attribute …": "Python's own message",
    "its contents do not have the checksum they were written with": "logged as part of a warning that is quoted",
    "its format is …, not …": "likewise",
}
# Raised to those who call an op by hand; the layers pass what fits. What a user can reach is quoted all the same.
OPS = source("modeling/ops")


def text_of(node: ast.expr | None) -> str | None:
    """A string's text, None for what is no string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else INSERTED for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (text_of(node.left) or INSERTED) + (text_of(node.right) or INSERTED)
    return None


def sources(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    for folder in folders:
        for path in sorted(source(folder).rglob("*.py")):
            if not any(parent.is_symlink() for parent in path.parents if parent != ROOT):
                yield path, ast.parse(path.read_text())


def raised() -> Iterator[tuple[Path, str]]:
    """Every message that COMPLETE raises, with its file."""
    for path, tree in sources(*COMPLETE):
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                text = text_of(node.exc.args[0])
                if text is not None:
                    yield path, text


LITERALS = {
    text
    for _, tree in sources(*FOLDERS)
    for node in ast.walk(tree)
    if isinstance(node, ast.expr) and (text := text_of(node)) is not None
}


def test_there_is_something_to_compare():
    assert len(QUOTES) > 150 and len(QUOTES) == TABLES.count("\n| `") - TABLES.count("\n| `0`")
    assert len(LITERALS) > 1000 and len(list(raised())) > 150


def test_no_message_is_quoted_twice_in_a_section():
    for section in TABLES.split("\n## "):
        quotes = re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE)
        assert len(set(quotes)) == len(quotes)


@pytest.mark.parametrize("quote", sorted(set(QUOTES)))
def test_what_is_quoted_is_in_the_sources(quote: str):
    assert len(quote.replace(INSERTED, "")) > 10, "too little to tell messages apart"
    # A quote may end where something is inserted, or within what is constant.
    assert any(quote in literal for literal in LITERALS)


def test_what_is_raised_is_quoted():
    quotes = tuple(QUOTES)
    missing = [
        f"{path.relative_to(ROOT)}: {text}"
        for path, text in raised()
        if not text.startswith(quotes) and text not in ELSEWHERE and OPS not in path.parents
    ]
    assert missing == []


def test_what_is_left_out_is_still_raised():
    texts = {text for _, text in raised()}
    assert [text for text in ELSEWHERE if text not in texts] == []


def test_exit_codes():
    rows = re.findall(r"^\| (\d[\d, ]*) \| (.*) \|$", PAGE, flags=re.MULTILINE)
    codes = {int(code) for numbers, _ in rows for code in numbers.split(", ")}
    assert codes == {0, *map(int, ExitCode)}
    known = " ".join(EPILOG.split())
    for numbers, meaning in rows:
        first = meaning.split(",")[0].removeprefix("`exec`: ")
        assert first in known, numbers
