"""The rules of CONTRIBUTING.md that a machine can see: short files that say what they are for, private names that stay
in their folder, imports that point one way, and test modules that tell what they prove.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.source_tree import imports, modules, syntax
from tests.support import ROOT, code_blocks, source

LONGEST = 350
# Longer files, each with its reason.
LONGER: dict[str, str] = {}

# What a part of the package may import beside itself. The rest of it (`__init__`, registration, command line, launch)
# is the front door and may import all.
BENEATH = {
    "extras": set(),
    "configuration": set(),
    "modeling.ops": set(),
    "tokenization": {"configuration"},
    "modeling": {"configuration", "modeling.ops"},
    "conversion_scripts": {"configuration", "modeling", "modeling.ops", "tokenization"},
    "evaluation": {"configuration", "extras", "modeling", "modeling.ops"},
    "training": {"configuration", "extras", "modeling", "modeling.ops"},
    # vLLM starts at the plugin, which is a front door of its own: it registers.
    "serving": {"configuration", "extras", "front", "modeling", "modeling.ops"},
}

# Files of an op's folder that choose a backend, and what backends share.
CHOOSING = {"__init__", "api", "op", "varlen", "ring"}
SHARED = {"reference", "gates", "kernels_triton"}


def part_of(module: str) -> str:
    """The part of the package that a module of ``recurrent_gemma`` belongs to."""
    inside = module.removeprefix("recurrent_gemma").removeprefix(".") + "."
    return next((part for part in sorted(BENEATH, reverse=True) if inside.startswith(part + ".")), "front")


def imported_parts() -> Iterator[tuple[str, str, str]]:
    """Part, imported part and where, of every import between two parts of the package."""
    for name, path in modules().items():
        if name.split(".")[0] == "recurrent_gemma":
            for module, *_ in imports(path):
                if module.split(".")[0] == "recurrent_gemma" and part_of(module) != part_of(name):
                    yield part_of(name), part_of(module), f"{path.relative_to(ROOT)} imports {module}"


def test_files_are_short_enough_to_read_in_a_sitting():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules().values()}
    assert {name: length for name, length in lengths.items() if length > LONGEST and name not in LONGER} == {}
    assert all(lengths[name] > LONGEST for name in LONGER)


def test_every_module_says_what_it_is_for():
    silent = [path for path in modules().values() if syntax(path).body and not ast.get_docstring(syntax(path))]
    assert silent == []


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_no_private_name_is_used_in_another_folder():
    # A test may still replace one by its name, through monkeypatch: a block's size, to make small inputs long.
    found = []
    for path in modules().values():
        known: dict[str, Path] = {}
        for module, name, local in imports(path):
            source = modules()[module]
            if name is None:
                known[local] = source
            elif is_private(name) and source.parent != path.parent:
                found.append(f"{path.relative_to(ROOT)}: from {module} import {name}")
        for node in ast.walk(syntax(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and is_private(node.attr):
                source = known.get(node.value.id, path)
                if source.parent != path.parent:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert found == []


def test_imports_point_one_way():
    wrong = [where for part, other, where in imported_parts() if part != "front" and other not in BENEATH[part]]
    assert wrong == []


def test_the_drawing_in_the_design_is_what_is_imported():
    (drawing,) = code_blocks((ROOT / "docs" / "design.md").read_text(encoding="utf-8"), "mermaid")
    drawn = [tuple(line.split(" --> ")) for line in map(str.strip, drawing.splitlines()) if "-->" in line]
    assert sorted(drawn) == sorted({(part, other) for part, other, _ in imported_parts()})


def test_the_package_imports_nothing_from_beside_it():
    beside = ("benchmarks", "examples", "tests")
    inside = {name: path for name, path in modules().items() if name.split(".")[0] == "recurrent_gemma"}
    assert [name for name, path in inside.items() for module, *_ in imports(path) if module.startswith(beside)] == []


@pytest.mark.parametrize("op", sorted(path.parent.name for path in source("modeling/ops").glob("*/__init__.py")))
def test_backends_of_an_op_do_not_import_each_other(op: str):
    package = f"recurrent_gemma.modeling.ops.{op}"
    files = {name.rpartition(".")[2]: path for name, path in modules().items() if name.startswith(package + ".")}
    backends = files.keys() - CHOOSING - SHARED
    assert backends
    for name in backends | SHARED & files.keys():
        within = {module.removeprefix(package + ".") for module, *_ in imports(files[name])} & files.keys()
        assert within <= SHARED - {name}, name


# Words that say what a test module is about, and leave open what it proves.
EMPTY = ("Tests of", "Tests for", "Test of", "Testing", "Unit tests", "Checks of")


def test_every_test_module_tells_what_it_proves():
    first_lines = {
        str(path.relative_to(ROOT)): (ast.get_docstring(syntax(path)) or "").split("\n")[0]
        for path in modules().values()
        if path.name.startswith("test_")
    }
    assert len(first_lines) > 100
    # A claim takes a verb or what is compared: a name alone has not the length.
    assert [name for name, line in first_lines.items() if line.startswith(EMPTY) or len(line.split()) < 7] == []
    assert len(set(first_lines.values())) == len(first_lines)


def test_files_named_by_the_test_runs_exist():
    in_order = re.findall(r"\w+/[\w/]+\.py", (ROOT / "tests" / "conftest.py").read_text())
    by_ci = re.findall(r"\btests/[\w/*]+(?:\.py)?", (ROOT / ".ci" / "run").read_text())
    assert len(in_order) > 10 and len(by_ci) > 10
    assert [name for name in [*(f"tests/{name}" for name in in_order), *by_ci] if not any(ROOT.glob(name))] == []
