"""MkDocs hook: the pages are written for the repository, and this makes a site of them that needs nothing beside it.

In the repository README.md stands at the top, and pages link to code, tests and data. On the site the files at the top
are pages like the others, and a linked file that is no page becomes one that shows it, so that every link leads
somewhere without a network. A link whose text is the name of a function leads to its line.
"""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]

# Pages that lie outside docs/, by their place on the site.
MOVED = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
    "serving_commands.md": "examples/serve.md",
    "demo_model.md": "recurrent_gemma/demo/README.md",
}
PLACES = {origin: place for place, origin in MOVED.items()}

# Fenced blocks are kept as they are; links are looked for between them.
FENCED = re.compile(r"^(`{3,})[^`]*?^\1`*[ ]*$", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?P<text>\[(?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*\])\((?P<target>[^()\s]+)\)")
NAMED = re.compile(
    r'<a href="(?P<to>(?:\.\./)*source/)(?P<path>[\w/]+\.py)\.html">(?=<code>(?:\w+\.)*(?P<name>\w+)</code></a>)'
)
LANGUAGES = {".json": "json", ".py": "python", ".sh": "bash", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/, and one for every file that a page links to."""
    for place, origin in MOVED.items():
        files.append(File.generated(config, place, content=_without_front_matter((ROOT / origin).read_text())))
    shown: set[str] = set()
    for page in files.documentation_pages():
        origin = _origin(page.src_uri)
        for link in _links(page.content_string):
            path = _in_repository(link["target"], origin)
            if path is not None and not _is_on_site(path):
                shown |= _with_contents(path)
    for path in sorted(shown):
        files.append(File.generated(config, _place(path), content=_source_page(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let the links of a page lead to where their targets are on the site."""
    here = page.file.src_uri
    if here.startswith("source/"):
        return markdown

    def rewritten(link: re.Match[str]) -> str:
        path = _in_repository(link["target"], _origin(here))
        if path is None:
            return link[0]
        if "![" in link["text"]:
            raise PluginError(f"{here}: a picture inside of a link; put the link below the picture.")
        _, sharp, anchor = link["target"].partition("#")
        return f"{link['text']}({relpath(_place(path), str(PurePosixPath(here).parent))}{sharp}{anchor})"

    parts, end = [], 0
    for block in FENCED.finditer(markdown):
        parts += [LINK.sub(rewritten, markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, LINK.sub(rewritten, markdown[end:])])


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links that name a function or class lead to its line, whose anchor the highlighter makes."""

    def with_line(link: re.Match[str]) -> str:
        return f'<a href="{link["to"]}{link["path"]}.html#__codelineno-0-{_line(link["path"], link["name"])}">'

    return NAMED.sub(with_line, html)


def _links(markdown: str) -> list[re.Match[str]]:
    return list(LINK.finditer(FENCED.sub("", markdown)))


def _origin(place: str) -> str:
    """The path in the repository of a page of the site."""
    return MOVED.get(place, f"docs/{place}")


def _in_repository(target: str, origin: str) -> str | None:
    """The path in the repository that a link in file ``origin`` leads to; None for addresses and for anchors."""
    path = target.partition("#")[0]
    if not path or ":" in path:
        return None
    found = normpath(str(PurePosixPath(origin).parent / path))
    # MkDocs itself looks for pages below docs/, of which some are made by hooks.
    if not found.startswith("docs/") and (found.startswith("..") or not (ROOT / found).exists()):
        raise PluginError(f"{origin}: link to {target}, which is not in the repository.")
    return found


def _is_on_site(path: str) -> bool:
    return path in PLACES or path.startswith("docs/")


def _place(path: str) -> str:
    """Where a file or folder of the repository is on the site."""
    if path in PLACES:
        return PLACES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    # MkDocs leaves out what begins with a dot.
    return f"source/{path.removeprefix('.')}.md"


def _with_contents(path: str) -> set[str]:
    """The file, or the folder and the files in it."""
    here = ROOT / path
    if here.is_file():
        return {path}
    inside = {file.relative_to(ROOT).as_posix() for file in here.iterdir() if file.is_file()}
    return {path, *(file for file in inside if not _is_on_site(file))}


def _source_page(path: str) -> str:
    # Not in the search: it would find every name in its tests before the page that explains it.
    head = f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n"
    here = ROOT / path
    if here.is_dir():
        names = sorted(file.name for file in here.iterdir() if file.is_file())
        places = {name: relpath(_place(f"{path}/{name}"), str(PurePosixPath(_place(path)).parent)) for name in names}
        return head + "".join(f"- [{name}]({place})\n" for name, place in places.items())
    return f'{head}``````{LANGUAGES.get(here.suffix, "text")} linenums="1"\n{here.read_text()}``````\n'


def _line(path: str, name: str) -> int:
    """The line of a file that defines a function or class."""
    found = re.search(rf"^ *(?:def|class) {name}\b", (ROOT / path).read_text(), flags=re.MULTILINE)
    if found is None:
        raise PluginError(f"{path}: a link names {name}, which is not defined there.")
    return found.string.count("\n", 0, found.start()) + 1


def _without_front_matter(text: str) -> str:
    return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
