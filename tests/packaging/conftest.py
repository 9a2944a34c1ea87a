"""Archives of the package, built once: the sdist, a wheel through it and a wheel from the checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support import LINKS, ROOT

# What is shipped beside the package and its folders of code.
BESIDE = (".ci", ".github", "benchmarks", "docs", "examples", "tests")
NOT_SHIPPED = ("__pycache__", "*.py[co]", "venv.*")


@pytest.fixture(scope="package")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build reads, links kept, so that the checkout gets no build leftovers."""
    copy = tmp_path_factory.mktemp("source")
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, copy)
    for name in ("recurrent_gemma", *LINKS, *BESIDE):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns(*NOT_SHIPPED))
    return copy


@pytest.fixture(scope="package")
def archives(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Paths of ``sdist``, ``wheel via sdist`` and ``wheel from checkout``."""
    out = tmp_path_factory.mktemp("dist")
    for folder, options in (("sdist", []), ("direct", ["--wheel"])):
        subprocess.run(
            [sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", str(out / folder), str(source)],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    (sdist,) = (out / "sdist").glob("*.tar.gz")
    (via_sdist,) = (out / "sdist").glob("*.whl")
    (direct,) = (out / "direct").glob("*.whl")
    return {"sdist": sdist, "wheel via sdist": via_sdist, "wheel from checkout": direct}


@pytest.fixture(scope="package")
def site(archives: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that the wheel is unpacked into, as an installer does into site-packages."""
    directory = tmp_path_factory.mktemp("site").resolve()
    with zipfile.ZipFile(archives["wheel via sdist"]) as wheel:
        wheel.extractall(directory)
    return directory
