"""Helpers shared by tests of several folders."""

import atexit
import functools
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

# Names of the top-level code folders that the importable package links to.
LINKS = sorted(path.name for path in (ROOT / "recurrent_gemma").iterdir() if path.is_symlink())


def source(path: str) -> Path:
    """A file or folder of the repository by its path in a checkout.

    In a source distribution, which holds no links, the folders of code lie inside of ``recurrent_gemma``.
    """
    return ROOT / path if (ROOT / path).exists() else ROOT / "recurrent_gemma" / path


# Set in continuous integration to the extra that is installed there ("1" is "test"): a test that needs it cannot skip.
REQUIRE_EXTRAS = "RECURRENT_GEMMA_REQUIRE_EXTRAS"


def require(module: str, extra: str = "test") -> ModuleType:
    """The imported optional dependency, or a skip that names it; callable in a test and at a test module's top level.

    Args:
        module: Dotted name, such as ``"jax"``.
        extra: The extra that brings it.

    Raises:
        pytest.skip.Exception: It is not installed.
        pytest.fail.Exception: It is not installed and ``RECURRENT_GEMMA_REQUIRE_EXTRAS`` names the extra.
        ImportError: It is installed and does not import.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
    reason = f'{module} is not installed: pip install "recurrent-gemma[{extra}]"'
    required = os.environ.get(REQUIRE_EXTRAS)
    if required == ("1" if extra == "test" else extra):
        pytest.fail(f"{reason} ({REQUIRE_EXTRAS}={required} makes this a failure)", pytrace=False)
    pytest.skip(reason, allow_module_level=True)


def code_blocks(page: str, language: str) -> list[str]:
    """The contents of a Markdown page's fenced blocks in ``language``."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


def run_python(
    *args: str, cwd: Path, env: Mapping[str, str] | None = None, stdin: str = "", code: int = 0, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """A finished fresh interpreter that sees the installed packages and this checkout, but not the current directory.

    Args:
        *args: Arguments of the interpreter, such as ``"-c", code``.
        cwd: Directory the process runs in; give one outside the checkout.
        env: Variables to set on top of this process's own.
        stdin: What the process reads from its standard input.
        code: The exit code that is expected, or the negative number of a signal.
        timeout: Seconds after which the process is ended and the test fails.

    Raises:
        AssertionError: The process ends with another ``code``; the message carries its output.
    """
    return _finished([sys.executable, *args], cwd, env, stdin, code, timeout)


def run_warm(
    *args: str, cwd: Path, env: Mapping[str, str] | None = None, stdin: str = "", code: int = 0, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """:func:`run_python` with torch and Transformers imported before, once for many processes.

    Not for tests of import orders, of what is imported, or of variables that libraries read when they are imported.
    """
    return _finished([*warm_interpreter(), *args], cwd, env, stdin, code, timeout)


@functools.cache
def warm_interpreter() -> tuple[str, ...]:
    """Command of an interpreter for :func:`run_warm`, with as many threads as this process has; valid until it ends."""
    # A process that has looked for GPUs cannot hand them to its forks.
    if not sys.platform.startswith("linux") or os.path.exists("/dev/nvidiactl"):
        return (sys.executable,)
    folder, program = tempfile.mkdtemp(), str(ROOT / "tests" / "nursery.py")
    path = os.path.join(folder, "socket")
    log = Path(folder, "stderr")
    with log.open("w") as stderr:
        server = subprocess.Popen(
            [sys.executable, program, path],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert server.stdout is not None

    @atexit.register
    def _end() -> None:
        server.communicate()
        shutil.rmtree(folder)

    assert server.stdout.readline() == "listening\n", log.read_text()
    return (sys.executable, "-IS", program, path)


def _finished(
    command: list[str], cwd: Path, env: Mapping[str, str] | None, stdin: str, code: int, timeout: float
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    done = subprocess.run(
        command, cwd=cwd, env=environment, input=stdin, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
