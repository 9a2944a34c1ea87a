"""Every link between files of the repository leads somewhere, to the heading or the test that it names."""

import os
import re
import unicodedata
from pathlib import Path

import pytest

from tests.support import ROOT, source

PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
        ROOT / "recurrent_gemma" / "demo" / "README.md",
    ]
)
# Pages of the site that it makes from other files when it is built.
MADE_BY_THE_SITE = {"changelog.md", "contributing.md", "demo_model.md", "security.md", "serving_commands.md"}
every_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


def text_of(page: Path) -> str:
    """A page without its code blocks, where brackets are no links."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> list[tuple[str, str]]:
    """Text and target of every link to a file, by ``[text](target)`` and by ``[label]: target``."""
    text = text_of(page)
    inline = re.findall(r"\[((?:[^][]|\[[^]]*\])*)\]\(([^)\s]+)\)", text)
    defined = [("", target) for target in re.findall(r"^\[[^]]+\]: (\S+)", text, flags=re.MULTILINE)]
    return [(name, target) for name, target in inline + defined if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them; Python-Markdown's are equal where no two headings are."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", text_of(page), flags=re.MULTILINE):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        kept = [c for c in words if c in " -_" or unicodedata.category(c)[0] in "LN"]
        found.add("".join(kept).replace(" ", "-"))
    return found


def target_of(page: Path, path: str) -> Path:
    """The file that a relative path on a page leads to."""
    return source(os.path.relpath(page.parent / path, ROOT))


def test_there_is_something_to_check():
    assert len(PAGES) > 20 and sum(len(links(page)) for page in PAGES) > 150
    assert "a-passkey" in anchors(ROOT / "docs" / "evidence.md")


@every_page
def test_links_lead_to_files(page: Path):
    targets = {target.partition("#")[0] for _, target in links(page)} - {""} - MADE_BY_THE_SITE
    assert [target for target in sorted(targets) if not target_of(page, target).exists()] == []


@every_page
def test_links_lead_to_headings(page: Path):
    missing = []
    for _, target in links(page):
        path, _, anchor = target.partition("#")
        other = page.parent / path if path else page
        if anchor and other.suffix == ".md" and other.name not in MADE_BY_THE_SITE and anchor not in anchors(other):
            missing.append(target)
    assert missing == []


@every_page
def test_tests_that_are_named_exist(page: Path):
    named = [(name.strip("`"), target) for name, target in links(page) if re.fullmatch(r"`test_\w+`", name)]
    assert [
        (name, target)
        for name, target in named
        if not re.search(rf"^ *def {name}\(", target_of(page, target).read_text(), flags=re.MULTILINE)
    ] == []


def test_every_deviation_names_its_test():
    page = (ROOT / "docs" / "numerics.md").read_text()
    deviations = page.partition("## Where rounding differs")[2].partition("\n## ")
    # Each begins in bold; what follows it up to the next belongs to it.
    paragraphs = re.split(r"\n(?=\*\*)", "".join(deviations))[1:]
    assert len(paragraphs) > 20
    assert [text[:40] for text in paragraphs if "[`test_" not in text] == []
