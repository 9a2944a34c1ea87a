"""MkDocs hook: fills in the page of the command line, as Typer describes the commands and their options."""

import re
import subprocess
import sys

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

PAGE = "api/command_line.md"
MARK = "<!-- commands: filled in when the site is built -->"
EXIT_CODES = re.compile(r"^Exit codes:\n.*?(?=\n\n|\Z)", flags=re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the description of every command in place of the mark."""
    if page.file.src_uri != PAGE:
        return markdown
    words = ["-m", "typer", "recurrent_gemma.cli.app", "utils", "docs", "--name", "recurrent-gemma"]
    described = subprocess.run([sys.executable, *words], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if described.returncode != 0:
        raise PluginError(f"{PAGE}: typer could not describe the commands.\n{described.stderr}")
    # Typer begins with a title of the first level, which the page has already.
    commands = described.stdout.partition("\n")[2]
    # Every command's help ends with the exit codes: once is enough here.
    codes = EXIT_CODES.search(commands)
    return markdown.replace(MARK, f"{EXIT_CODES.sub('', commands)}\n## Exit codes\n\n```text\n{codes[0]}\n```\n")
