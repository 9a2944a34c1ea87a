"""The repository's modules and what they import, read from their source: nothing here is run or imported."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from tests.support import LINKS, ROOT

FOLDERS = sorted({"recurrent_gemma", "benchmarks", "examples", "tests", *LINKS})


@functools.cache
def modules() -> dict[str, Path]:
    """Every module's file by the module's one name, such as ``recurrent_gemma.modeling.inputs``."""
    found = {}
    for folder in FOLDERS:
        # It follows no links: the folders that `recurrent_gemma` links to are visited by themselves.
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if folder == "examples" and parts[1] == "work":  # what the scripts there write
                continue
            name = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join(("recurrent_gemma", *name) if folder in LINKS else name)] = path
    return found


@functools.cache
def syntax(path: Path) -> ast.Module:
    """The parsed file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[tuple[str, str | None, str]]:
    """Module, name and the name it gets in the file, of each import of the repository's own code, wherever it stands.

    The name is None where the module itself is imported, ``from package import module`` included.
    """
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                if submodule in modules():
                    yield submodule, None, alias.asname or alias.name
                elif node.module in modules():
                    yield node.module, alias.name, alias.asname or alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in modules():
                    yield alias.name, None, alias.asname or alias.name
