"""Downloads the tests that come with Transformers: ``python tests/upstream/fetch.py``.

Wheels of Transformers hold no tests; its source distribution on PyPI does. The one of the installed version is
downloaded once, and its ``tests`` folder kept in ``.cache/``, which git ignores.
"""

import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent.parent
COMMAND = "python tests/upstream/fetch.py"


def folder() -> Path:
    """Where the tests of the installed version of Transformers lie once they have been downloaded."""
    return ROOT / ".cache" / f"transformers-{importlib.metadata.version('transformers')}" / "tests"


def download(target: Path) -> None:
    """Fill ``target`` with the ``tests`` folder of the source distribution; all of it or nothing."""
    version = importlib.metadata.version("transformers")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        work = Path(name)
        options = ["--no-deps", "--no-binary", "transformers", "--dest", str(work)]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, f"transformers=={version}"], check=True)
        (archive,) = work.glob("*.tar.gz")
        with tarfile.open(archive) as sources:
            members = [m for m in sources.getmembers() if PurePosixPath(m.name).parts[1:2] == ("tests",)]
            sources.extractall(work, members=members, filter="data")
        (unpacked,) = work.glob("*/tests")
        shutil.move(unpacked, target)


if __name__ == "__main__":
    if not folder().is_dir():
        download(folder())
    print(folder())
