"""Public docstrings say what the signatures say: the arguments listed are the function's, each by itself and in order,
and mkdocstrings, which makes the pages of the API from them, has nothing to warn of.
"""

import importlib
import inspect
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.packaging.public_api import is_class, is_ours
from tests.packaging.test_public_names import PUBLIC_NAMES
from tests.support import ROOT, require

# What a docstring says that leaves the rest to another one.
PARTIAL = "Arguments not listed"
SECTIONS = {"Args", "Attributes", "Raises", "Returns", "Yields"}


def documented() -> Iterator[tuple[str, str, list[str]]]:
    """Name, docstring and parameters of every public function, class and method of a class."""
    for package, names in PUBLIC_NAMES.items():
        for name in names.split():
            value = getattr(importlib.import_module(package), name)
            members = {} if not is_class(value) else own_methods(value)
            if is_class(value):
                members[""] = value.__init__
            elif inspect.isroutine(value):
                members[""] = value
            for member, function in members.items():
                doc = value.__doc__ if not member else function.__doc__
                if doc and is_ours(inspect.unwrap(function)):
                    yield f"{package}.{name}.{member}".rstrip("."), inspect.cleandoc(doc), parameters(function)


def own_methods(cls: type) -> dict[str, Any]:
    found = {name: getattr(value, "__func__", value) for name, value in vars(cls).items() if not name.startswith("_")}
    return {name: function for name, function in found.items() if inspect.isfunction(function)}


def parameters(function: Any) -> list[str]:
    """Names as they are written in a docstring, with their stars."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    found = inspect.signature(function).parameters.values()
    return [stars.get(p.kind, "") + p.name for p in found if p.name not in ("self", "cls")]


def section(doc: str, name: str) -> list[str]:
    """The entries of a section: what stands before the colon."""
    body = re.search(rf"^{name}:\n((?:    .*\n|\n)*)", doc + "\n", flags=re.MULTILINE)
    return [] if body is None else re.findall(r"^    (\S[^:\n]*):", body[1], flags=re.MULTILINE)


def test_arguments_are_those_of_the_signature():
    checked, wrong = 0, {}
    for name, doc, expected in documented():
        listed = section(doc, "Args")
        if PARTIAL in doc:
            expected = [parameter for parameter in expected if parameter in listed]
        if "\nArgs:\n" in doc:
            checked += 1
            if listed != expected:
                wrong[name] = (listed, expected)
    assert wrong == {}
    assert checked > 50


def test_sections_are_those_that_are_read():
    titles = {(name, title) for name, doc, _ in documented() for title in re.findall(r"^(\w+):$", doc, re.MULTILINE)}
    assert {(name, title) for name, title in titles if title not in SECTIONS} == set()


def test_mkdocstrings_reads_them_without_a_warning(caplog: pytest.LogCaptureFixture):
    griffe = require("griffe", "docs")
    package = griffe.load("recurrent_gemma", search_paths=[str(ROOT)], resolve_aliases=True)
    caplog.set_level(logging.WARNING, logger="griffe")
    parsed = 0
    for name, *_ in documented():
        found = package[name.removeprefix("recurrent_gemma.")]
        found = found.final_target if found.is_alias else found
        parsed += len(found.docstring.parse("google")) if found.docstring else 0
    assert parsed > 100
    messages = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [message for message in messages if "docstring" in message or ".py:" in message] == []
