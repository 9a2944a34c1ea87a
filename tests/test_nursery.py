"""A warm interpreter does what a fresh one does: both run the same programs here."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import run_python, run_warm, warm_interpreter

every_way = pytest.mark.parametrize("run", [run_python, run_warm])

# What a program can see of where it runs. Imports nothing that takes long.
SEEN = """
import os, sys, warnings
print([*sys.argv, os.getcwd(), os.environ["COLOR"], __name__, sys.stdin.read(), "recurrent_gemma" in sys.modules])
warnings.warn("a warning", UserWarning)
"""


def test_arguments_streams_directory_and_environment(tmp_path: Path):
    (tmp_path / "program.py").write_text(SEEN)
    for command in (["-c", SEEN], ["-m", "program"], [str(tmp_path / "program.py")]):
        options: dict[str, Any] = {"cwd": tmp_path, "env": {"COLOR": "green"}, "stdin": "words\n"}
        fresh, warm = (run(*command, "--option", "a b", **options) for run in (run_python, run_warm))
        assert fresh.stdout == warm.stdout and "green" in fresh.stdout
        assert "UserWarning: a warning" in warm.stderr


@every_way
def test_warnings_can_be_errors(run: Callable[..., Any], tmp_path: Path):
    done = run("-W", "error", "-c", "import warnings; warnings.warn('a warning')", cwd=tmp_path, code=1)
    assert done.stderr.splitlines()[-1] == "UserWarning: a warning"


@every_way
def test_how_a_program_ends(run: Callable[..., Any], tmp_path: Path):
    assert run("-c", "import sys; sys.exit(41)", cwd=tmp_path, code=41).stderr == ""
    assert run("-c", "import sys; sys.exit('no')", cwd=tmp_path, code=1).stderr == "no\n"
    assert run("-c", "import os; os.kill(os.getpid(), 9)", cwd=tmp_path, code=-signal.SIGKILL).stderr == ""
    late = "import atexit; atexit.register(print, 'late'); print('early')"
    assert run("-c", late, cwd=tmp_path).stdout == "early\nlate\n"
    with pytest.raises(AssertionError, match="exit code 0\nearly"):
        run("-c", late, cwd=tmp_path, code=3)


@pytest.mark.parametrize("command", [lambda: (sys.executable,), warm_interpreter], ids=["fresh", "warm"])
def test_an_interrupt_reaches_the_program(command: Callable[[], tuple[str, ...]]):
    lines = ["import time", "try:", " print('ready', flush=True)", " time.sleep(600)"]
    code = "\n".join([*lines, "except KeyboardInterrupt:", " print('end')"])
    with subprocess.Popen([*command(), "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == "end\n" and process.wait(timeout=600) == 0


def test_one_program_leaves_nothing_for_the_next(tmp_path: Path):
    run_warm("-c", "import os, recurrent_gemma; os.environ['LEFT'] = 'x'; os.chdir('/')", cwd=tmp_path)
    code = "import os, sys; print('LEFT' in os.environ, 'recurrent_gemma' in sys.modules, 'torch' in sys.modules)"
    assert run_warm("-c", code, cwd=tmp_path).stdout.split()[:2] == ["False", "False"]
