"""What the installed package says of itself is true: version, tested bounds, command, licence."""

import importlib.metadata
import re
from pathlib import Path

import pytest
import yaml
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
    (cited,) = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)
    assert distribution.version == imported == releases[0] == cited


def test_command_and_licence(distribution: importlib.metadata.Distribution):
    (command,) = distribution.entry_points.select(group="console_scripts")
    assert (command.name, command.value) == ("recurrent-gemma", "recurrent_gemma.cli:main")
    assert distribution.metadata["License-Expression"] == "Apache-2.0"
    assert distribution.metadata.get_all("License-File") == ["LICENSE", "NOTICE"]


def test_citation_and_templates_can_be_read():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "Apache-2.0"
    assert {"message", "title", "authors", "version", "date-released"} <= citation.keys()
    assert f"## [{citation['version']}] - {citation['date-released']}" in (ROOT / "CHANGELOG.md").read_text()
    named = [entry["value"].removeprefix("arXiv:") for of in citation["references"] for entry in of["identifiers"]]
    assert [number for number in named if number not in (ROOT / "README.md").read_text()] == []
    templates = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]
    assert len(templates) == 4
    for template in map(yaml.safe_load, (path.read_text() for path in templates)):
        assert template.keys() == {"name", "description", "labels", "body"}
        fields = [field for field in template["body"] if field["type"] != "markdown"]
        assert fields and all(field["id"] and field["attributes"]["label"] for field in fields)


def test_the_notice_names_what_the_small_model_was_made_of():
    notice, card = ((ROOT / path).read_text() for path in ("NOTICE", "recurrent_gemma/demo/README.md"))
    for source in ("bible-kjv-text", "janeaustenr", "heldout.txt"):
        assert source in notice and source in card
    assert "THE SOFTWARE IS PROVIDED" in notice  # the MIT licence of janeaustenr asks for its notice


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
        "griffe": "mkdocstrings",
        "material": "mkdocs-material",
        "mkdocs": "mkdocs-material",
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
