"""Helpers shared by tests of several folders."""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Names of the top-level code folders that the importable package links to.
LINKS = sorted(path.name for path in (ROOT / "recurrent_gemma").iterdir() if path.is_symlink())

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
    *args: str, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """A finished fresh interpreter that sees the installed packages and this checkout, but not the current directory.

    Args:
        *args: Arguments of the interpreter, such as ``"-c", code``.
        cwd: Directory the process runs in; give one outside the checkout.
        env: Variables to set on top of this process's own.
        timeout: Seconds after which the process is ended and the test fails.

    Raises:
        AssertionError: The process exits with another code than 0; the message carries its output.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
    done = subprocess.run(
        [sys.executable, *args],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=timeout,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
