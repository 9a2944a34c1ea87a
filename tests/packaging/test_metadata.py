"""What the installed package says of itself is true: version, tested bounds, command, licence."""

import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support import ROOT, run_python


@pytest.fixture(scope="module")
def distribution(site: Path) -> importlib.metadata.Distribution:
    (found,) = importlib.metadata.distributions(name="recurrent-gemma", path=[str(site)])
    return found


def test_version_is_the_same_everywhere(distribution: importlib.metadata.Distribution, site: Path, tmp_path: Path):
    releases = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    code = "import recurrent_gemma; print(recurrent_gemma.__version__)"
    imported = run_python("-c", code, cwd=tmp_path, env={"PYTHONPATH": str(site)}).stdout.strip()
    assert distribution.version == imported == releases[0]


def test_command_and_licence(distribution: importlib.metadata.Distribution):
    (command,) = distribution.entry_points.select(group="console_scripts")
    assert (command.name, command.value) == ("recurrent-gemma", "recurrent_gemma.cli:main")
    assert distribution.metadata["License-Expression"] == "Apache-2.0"
    assert distribution.metadata.get_all("License-File") == ["LICENSE", "NOTICE"]


def test_lower_bounds_are_the_versions_that_ci_tests(distribution: importlib.metadata.Distribution):
    requirements = [Requirement(line) for line in distribution.requires or []]
    bounds = {
        requirement.name: bound.version
        for requirement in requirements
        if requirement.marker is None
        for bound in requirement.specifier
        if bound.operator == ">="
    }
    lines = (ROOT / ".ci" / "oldest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert {name: _release(pin) for name, pin in pins.items()} == {name: _release(v) for name, v in bounds.items()}


def test_the_test_extra_brings_every_package_that_tests_import(distribution: importlib.metadata.Distribution):
    named = {Requirement(line).name for line in distribution.requires or []}
    tests = [path.read_text() for path in (ROOT / "tests").rglob("*.py")]
    modules = {module for text in tests for module in re.findall(r'\brequire\("(\w+)', text)}
    brought_by = {
        "google": "protobuf",
        "openai": "vllm",
        **dict.fromkeys(("evaluate", "lm_eval"), "lm-eval"),
        **dict.fromkeys(("jax", "ml_dtypes", "orbax"), "recurrentgemma"),
    }
    assert {brought_by.get(module, module) for module in modules} <= named


def _release(version: str) -> list[int]:
    parts = [int(part) for part in version.split(".")]
    while parts[-1] == 0:
        parts.pop()
    return parts
