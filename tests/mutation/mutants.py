"""Mutants of a source file, by mutmut's operators."""

import difflib
import itertools
import random
from dataclasses import dataclass
from pathlib import Path

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

# Not mutated, nor what stands in them: types, messages, and what Python itself checks when a module is imported.
_SKIPPED = (
    cst.Annotation,
    cst.Assert,
    cst.ConcatenatedString,
    cst.Decorator,
    cst.FormattedString,
    cst.Import,
    cst.ImportFrom,
    cst.Raise,
)
# Strings in calls of these are names for messages.
_NAMING = ("choose_", "expect_", "_expect_", "refuse_")
_STATEMENTS = (cst.SimpleStatementLine, cst.BaseCompoundStatement)


@dataclass(frozen=True)
class Mutant:
    """A file with one change.

    Attributes:
        path: The file.
        lines: Numbers of the lines that run if the changed place does.
        name: ``function: changed lines``, which stays the same while the function does.
        source: The changed file.
    """

    path: Path
    lines: frozenset[int]
    name: str
    source: str


class _Visitor(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self) -> None:
        self.found: list[tuple[cst.CSTNode, cst.CSTNode, frozenset[int], str]] = []
        self._statements: list[int] = []
        self._functions: list[str] = []
        self._naming = 0

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, _SKIPPED):
            return False
        if isinstance(node, cst.SimpleString) and (self._naming or " " in node.value):
            return False
        self._naming += _is_naming(node)
        span = self.get_metadata(PositionProvider, node)
        if isinstance(node, _STATEMENTS):
            self._statements.append(span.start.line)
        if isinstance(node, cst.FunctionDef):
            self._functions.append(node.name.value)
        for kind, operator in mutation_operators:
            if isinstance(node, kind):
                lines = frozenset((*self._statements[-1:], *range(span.start.line, span.end.line + 1)))
                function = self._functions[-1] if self._functions else "module"
                self.found += [(node, changed, lines, function) for changed in operator(node)]
        return True

    def on_leave(self, node: cst.CSTNode) -> None:
        if isinstance(node, _STATEMENTS):
            self._statements.pop()
        if isinstance(node, cst.FunctionDef):
            self._functions.pop()
        self._naming -= _is_naming(node)


def _is_naming(node: cst.CSTNode) -> bool:
    return isinstance(node, cst.Call) and isinstance(node.func, cst.Name) and node.func.value.startswith(_NAMING)


def make_mutants(paths: list[Path], sample: int | None, seed: int) -> tuple[list[Mutant], int]:
    """Mutants of all the files, at most ``sample``, and how many there are without that limit.

    Every place is sampled once before any is sampled twice: a call of ten arguments has twenty mutants, a sign has one.
    """
    candidates = []
    for path in paths:
        wrapper = MetadataWrapper(cst.parse_module(path.read_text()))
        visitor = _Visitor()
        wrapper.visit(visitor)
        by_place: dict[int, list] = {}
        for change in visitor.found:
            by_place.setdefault(id(change[0]), []).append((path, wrapper.module, *change))
        chance = random.Random(f"{seed} {path.name}")
        for changes in by_place.values():
            chance.shuffle(changes)
            candidates += [(turn, chance.random(), change) for turn, change in enumerate(changes)]
    candidates.sort(key=lambda candidate: candidate[:2])
    mutants = (_mutant(*change) for _, _, change in candidates)
    different = {mutant.source: mutant for mutant in itertools.islice(mutants, sample)}
    return list(different.values()), len(candidates)


def _mutant(
    path: Path, module: cst.Module, node: cst.CSTNode, changed: cst.CSTNode, lines: frozenset[int], function: str
) -> Mutant:
    source = module.deep_replace(node, changed).code
    return Mutant(path, lines, f"{function}: {_change(module.code, source)}", source)


def _change(before: str, after: str) -> str:
    """What was put in, or else what was taken out, on one line."""
    difference = list(difflib.unified_diff(before.splitlines(), after.splitlines(), n=0))[3:]
    put_in = [line[1:].strip() for line in difference if line.startswith("+")]
    taken_out = [line[1:].strip() for line in difference if line.startswith("-")]
    return " ".join(put_in) if any(put_in) else f"without {' '.join(taken_out)}"
