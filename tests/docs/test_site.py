"""The documentation is a site: it builds without a warning, shows every public name, and is read without a network."""

import html
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.test_public_names import PUBLIC_NAMES
from tests.support import LINKS, ROOT, require

# What users import. Names of the packages below are for those who change this one.
DOCUMENTED = ("", ".conversion_scripts", ".evaluation", ".evaluation.long_context", ".modeling.ops", ".tokenization")
DOCUMENTED = (*DOCUMENTED, ".training")
# Tables and constants, which pages describe in words.
IN_WORDS = {"CHAT_TEMPLATE", "GROUPS", "PRESETS", "ROWS", "SUITES", "__version__"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module in ("mkdocs", "material", "mkdocstrings"):
        require(module)
    if not LINKS:
        pytest.skip("a source distribution has no top-level folders of code for the pages to lead to")
    directory = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return directory


def _pages(site: Path) -> dict[str, str]:
    return {page.relative_to(site).as_posix(): page.read_text() for page in site.rglob("*.html")}


def test_every_page_of_the_repository_is_on_it(site: Path):
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert len(pages) > 25
    assert pages | {"index.html", "contributing.html", "changelog.html", "security.html"} <= _pages(site).keys()


def test_every_public_name_is_on_a_page_of_the_reference(site: Path):
    reference = "".join(text for name, text in _pages(site).items() if name.startswith("api/"))
    shown = set(re.findall(r'<h[23] id="recurrent_gemma\.(?:\w+\.)*?(\w+)"', reference))
    names = {
        name for package in DOCUMENTED for name in importlib.import_module(f"recurrent_gemma{package}").__all__
    } - IN_WORDS
    assert {f"recurrent_gemma{package}" for package in DOCUMENTED} <= PUBLIC_NAMES.keys()
    assert names - shown == set()


def test_it_loads_nothing_from_elsewhere(site: Path):
    loaded = re.compile(r'<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]*"')
    assert {name: found for name, text in _pages(site).items() if (found := loaded.findall(text))} == {}


def test_links_that_name_a_test_lead_to_its_line(site: Path):
    links = re.findall(
        r'<a href="source/([\w/]+\.py)\.html#__codelineno-0-(\d+)"><code>(\w+)</code>', _pages(site)["numerics.html"]
    )
    assert len(links) >= 10
    for path, line, name in links:
        assert re.match(rf" *(def|class) {name}\b", (ROOT / path).read_text().splitlines()[int(line) - 1])
        assert f'id="__codelineno-0-{line}"' in (site / "source" / f"{path}.html").read_text()


def test_every_command_and_the_exit_codes_are_described_once(site: Path):
    page = html.unescape((site / "api" / "command_line.html").read_text())
    for command in ("generate", "chat", "convert", "info", "eval", "exec", "session info"):
        assert len(re.findall(rf"<h[23][^>]*><code>recurrent-gemma {command}</code>", page)) == 1
    assert page.count("unexpected error; --debug before the command") == 1
