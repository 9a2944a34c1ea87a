"""Wheel and sdist hold every file of the package as a regular file, and what is installed from them has one name each.

The importable package holds symbolic links to top-level folders; archives that kept the links, left a folder out, or
put a folder at the top level of site-packages would only break on the users' machines.
"""

import json
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support import LINKS, ROOT, require, run_python


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Contents of every file of the package by path, the links followed."""
    package = tmp_path_factory.mktemp("resolved") / "recurrent_gemma"
    shutil.copytree(source / "recurrent_gemma", package, symlinks=False)
    files = [path for path in package.rglob("*") if path.is_file()]
    return {path.relative_to(package.parent).as_posix(): path.read_bytes() for path in files}


def test_links_are_relative_and_resolve_inside_the_checkout():
    for name in LINKS:
        assert (ROOT / "recurrent_gemma" / name).readlink().as_posix() == f"../{name}"
        assert (ROOT / name / "__init__.py").is_file()


def test_every_folder_of_modules_is_a_package():
    # Discovery takes packages only: a folder without __init__.py would stay out of the wheel.
    for name in LINKS:
        for module in (ROOT / name).rglob("*.py"):
            assert (module.parent / "__init__.py").is_file(), f"{module.parent.relative_to(ROOT)} lacks __init__.py"


@pytest.mark.parametrize("kind", ["wheel via sdist", "wheel from checkout"])
def test_wheel_holds_every_file_as_a_regular_file(kind: str, archives: dict[str, Path], expected: dict[str, bytes]):
    with zipfile.ZipFile(archives[kind]) as wheel:
        members = [member for member in wheel.infolist() if ".dist-info/" not in member.filename]
        assert all(stat.S_ISREG(member.external_attr >> 16) for member in members)
        assert {member.filename: wheel.read(member) for member in members} == expected
    assert "recurrent_gemma/py.typed" in expected


def test_sdist_holds_every_file_as_a_regular_file(archives: dict[str, Path], expected: dict[str, bytes]):
    with tarfile.open(archives["sdist"]) as sdist:
        members = [member for member in sdist.getmembers() if not member.isdir()]
        assert all(member.isreg() for member in members)
        contents = {member.name.split("/", 1)[1]: sdist.extractfile(member).read() for member in members}
    assert {name: data for name, data in contents.items() if name.startswith("recurrent_gemma/")} == expected


def test_sdist_holds_what_its_tests_and_its_site_need(archives: dict[str, Path], source: Path):
    with tarfile.open(archives["sdist"]) as sdist:
        names = {member.name.split("/", 1)[1] for member in sdist.getmembers() if not member.isdir()}
    folders = tuple(f"{name}/" for name in ("build", "recurrent_gemma", "recurrent_gemma.egg-info", *LINKS))
    # setuptools' own: metadata, and an empty configuration.
    made = {"PKG-INFO", "setup.cfg"}
    expected = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()} - made
    assert {name for name in names - made if not name.startswith(folders)} == {
        name for name in expected if not name.startswith(folders)
    }
    assert {".ci/run", "tests/conftest.py", "docs/design.md", "mkdocs.yml", "CITATION.cff", "SECURITY.md"} <= names


def test_archives_are_sound_and_small(archives: dict[str, Path]):
    require("twine")
    done = run_python("-m", "twine", "check", "--strict", *map(str, archives.values()), cwd=archives["sdist"].parent)
    assert done.stdout.count("PASSED") == len(archives)
    # The small model is 10.9 MB, of which compression leaves four fifths.
    sizes = {kind: path.stat().st_size / 1e6 for kind, path in archives.items()}
    assert sizes["wheel via sdist"] < 10 and sizes["wheel from checkout"] < 10 and sizes["sdist"] < 14


# Left out: what runs inside vLLM, which is imported there.
IMPORT_EVERYTHING = """
import importlib, importlib.util, json, os, pkgutil, sys
import recurrent_gemma
for module in pkgutil.walk_packages(recurrent_gemma.__path__, "recurrent_gemma."):
    if not module.name.endswith("__main__") and ".serving.engine." not in module.name:
        importlib.import_module(module.name)
# Some modules of other packages name a relative file that does not exist.
files = [(name, getattr(module, "__file__", None) or "") for name, module in list(sys.modules.items())]
files = [(name, file) for name, file in files if os.path.isabs(file)]
top = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is not None]
print(json.dumps({"files": files, "top": top}))
"""


def _names_by_file(files: list[tuple[str, str]], below: Path) -> dict[Path, list[str]]:
    """Names under which each source file below a folder was imported."""
    names: dict[Path, list[str]] = {}
    for name, file in files:
        path = Path(file).resolve()
        if path.is_relative_to(below):
            names.setdefault(path, []).append(name)
    return names


def test_installed_wheel_imports_every_module_under_one_name(site: Path, expected: dict[str, bytes], tmp_path: Path):
    done = run_python("-c", IMPORT_EVERYTHING, *LINKS, cwd=tmp_path, env={"PYTHONPATH": str(site)})
    report = json.loads(done.stdout.splitlines()[-1])
    names = _names_by_file(report["files"], below=site)
    modules = {name for name in expected if name.endswith(".py") and not name.endswith("__main__.py")}
    modules -= {name for name in modules if "/serving/engine/" in name and not name.endswith("__init__.py")}
    assert {path.relative_to(site).as_posix() for path in names} == modules
    assert all(len(of_file) == 1 for of_file in names.values()), names
    assert report["top"] == []


def test_checkout_imports_every_module_under_one_name(tmp_path: Path):
    # Here ``modeling`` could be imported: what counts is that none of our modules does.
    report = json.loads(run_python("-c", IMPORT_EVERYTHING, cwd=tmp_path).stdout.splitlines()[-1])
    # A virtual environment may lie inside the checkout; its files are not ours.
    folders = [_names_by_file(report["files"], below=ROOT / folder) for folder in ("recurrent_gemma", *LINKS)]
    assert all(folders)
    names = {path: of_file for folder in folders for path, of_file in folder.items()}
    assert all(len(of_file) == 1 for of_file in names.values()), names
    assert all(name.split(".")[0] == "recurrent_gemma" for of_file in names.values() for name in of_file), names
