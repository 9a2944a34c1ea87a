"""A missing optional dependency is named with the command that installs it; what breaks inside of one is not hidden."""

from pathlib import Path

import pytest

from recurrent_gemma.extras import require_extra


def test_a_missing_module_is_named_with_the_command():
    with pytest.raises(
        ImportError, match=r'of_that_name is not .*, which it needs: pip install "recurrent-gemma\[x\]"'
    ):
        require_extra("no_module", extra="x", needed_by="it needs", distribution="of_that_name")


def test_what_it_imports_in_turn_is_named_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "halfway.py").write_text("import not_there_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_there_at_all"):
        require_extra("halfway", extra="x", needed_by="it needs")
