"""Every script says what it is for, and names each option that its docstring speaks of."""

from pathlib import Path

import pytest

from tests.support import ROOT, run_warm

SOURCES = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "examples").rglob("*.py"))}
SCRIPTS = [path for path, source in SOURCES.items() if '__name__ == "__main__"' in source]
# Options that a docstring explains, at least.
EXPLAINED = {"packed": 8, "long_documents": 8}


def test_scripts_were_found() -> None:
    assert {"train_demo", "serve_conversations", "lora", "dpo", *EXPLAINED} <= {path.stem for path in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_help(script: Path, tmp_path: Path) -> None:
    # Wide enough for no word to be parted.
    shown = run_warm("-W", "error", str(script), "--help", cwd=tmp_path, env={"COLUMNS": "400"}).stdout
    docstring = SOURCES[script].split('"""')[1]
    assert docstring.splitlines()[0] in shown
    options = {word.strip("`.,;)[]") for word in docstring.split() if word.strip("`([").startswith("--")}
    assert len(options) >= EXPLAINED.get(script.stem, 0)
    # Those with an underscore are of the launcher that starts the script.
    assert [option for option in options if "_" not in option and option not in shown] == []
