"""Pages of docs/ whose tables are made by a command: what stands between two markers is replaced, and nothing else."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

_BLOCK = re.compile(r"<!-- table (?P<name>\S+) -->\n(.*?)<!-- end -->", flags=re.DOTALL)


def renew(page: str, table: Callable[[str], str | None]) -> str:
    """``page`` with every block ``<!-- table NAME -->`` filled with ``table(NAME)``, left alone where that is None."""

    def fill(block: re.Match) -> str:
        made = table(block["name"])
        return block[0] if made is None else f"<!-- table {block['name']} -->\n{made}\n<!-- end -->"

    return _BLOCK.sub(fill, page)


def renew_file(path: Path, renewed: Callable[[str], str]) -> list[Path]:
    """Replace a page by what ``renewed`` makes of it; the files written, which are none where there is no page."""
    if not path.is_file():
        return []
    path.write_text(renewed(path.read_text(encoding="utf-8")), encoding="utf-8")
    return [path]


def with_blocks(page: str, names: Iterable[str]) -> str:
    """``page`` with an empty block at its end for every name that it has none for."""
    present = {block["name"] for block in _BLOCK.finditer(page)}
    missing = [name for name in names if name not in present]
    return page + "".join(f"\n<!-- table {name} -->\n<!-- end -->\n" for name in missing)


def markdown_table(heading: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [heading, ["---"] * len(heading), *rows])
