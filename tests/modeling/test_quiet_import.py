"""Importing the package writes nothing, and takes no log away afterwards."""

from pathlib import Path

from tests.support import run_python


def test_nothing_is_written(tmp_path: Path):
    done = run_python("-c", "import recurrent_gemma", cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("", "")


def test_what_is_logged_later_is_seen(tmp_path: Path):
    code = "import logging, recurrent_gemma; logging.getLogger('torchao').warning('seen')"
    assert run_python("-c", code, cwd=tmp_path).stderr == "seen\n"
