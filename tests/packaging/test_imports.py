"""Importing the package needs none of its extras, and loads none that Transformers would not load by itself."""

import ast
import json
from pathlib import Path

from tests.support import ROOT, run_python, source

EXTRAS = """
datasets evaluate flax jax jaxlib lm_eval matplotlib mkdocs orbax peft pytest recurrentgemma sentencepiece triton trl
vllm
""".split()

# Left out: kernels and what runs inside vLLM, which are imported where they run.
EVERY_MODULE = """
import importlib, json, pkgutil, sys
import recurrent_gemma
names = ["recurrent_gemma"]
for module in pkgutil.walk_packages(recurrent_gemma.__path__, "recurrent_gemma."):
    if not module.name.endswith(("__main__", "triton")) and ".serving.engine." not in module.name:
        importlib.import_module(module.name)
"""

REPORT = """
print(json.dumps({"modules": sorted(sys.modules), "extras": [name for name in sys.argv[1:] if name in sys.modules]}))
"""


def _loaded(code: str, tmp_path: Path) -> dict[str, list[str]]:
    return json.loads(run_python("-c", code + REPORT, *EXTRAS, cwd=tmp_path).stdout.splitlines()[-1])


def test_every_module_imports_without_the_extras(tmp_path: Path):
    # None in sys.modules makes a package absent to both ``import`` and ``importlib.util.find_spec``.
    absent = "import sys\nfor name in sys.argv[1:]: sys.modules[name] = None\n"
    run_python("-c", absent + EVERY_MODULE, *EXTRAS, cwd=tmp_path)


def test_every_module_loads_no_extra_that_transformers_does_not(tmp_path: Path):
    ours = _loaded(EVERY_MODULE, tmp_path)
    # The same modules of the libraries below us, imported without us.
    below = [name for name in ours["modules"] if name.split(".")[0] in ("accelerate", "torch", "transformers")]
    assert "transformers" in below
    theirs = _loaded(
        f"import importlib, json, sys\nfor name in {below!r}:\n"
        "    try:\n        importlib.import_module(name)\n    except ImportError:\n        pass\n",
        tmp_path,
    )
    assert set(ours["extras"]) <= set(theirs["extras"])


def test_the_front_door_does_not_import_the_trainer(tmp_path: Path):
    # It takes seconds, and what it imports in turn (datasets, peft) is not needed to run a model.
    assert "transformers.trainer" not in _loaded("import json, sys\nimport recurrent_gemma\n", tmp_path)["modules"]


def test_no_module_imports_an_extra_at_its_top_level():
    # The process above cannot tell who imported an extra that Transformers imports as well; the source can.
    found = []
    for path in _modules():
        for node in _executed_on_import(ast.parse(path.read_text()).body):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"{path.relative_to(ROOT)}: {name}" for name in names if name.split(".")[0] in EXTRAS]
    assert found == []


def _modules() -> list[Path]:
    package = ROOT / "recurrent_gemma"
    folders = [path for path in package.iterdir() if path.is_symlink()]
    modules = [*package.glob("*.py"), *(module for folder in folders for module in folder.resolve().rglob("*.py"))]
    inside_vllm = source("serving/engine").glob("*.py")
    kernels = [module for module in modules if module.name.endswith("triton.py")]
    return sorted({*modules} - {*kernels, *inside_vllm})  # which are imported where they run


def _executed_on_import(body: list[ast.stmt]):
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from _executed_on_import(node.orelse)
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for field in ("body", "orelse", "finalbody"):
                yield from _executed_on_import(getattr(node, field, []) or [])
            for handler in getattr(node, "handlers", []):
                yield from _executed_on_import(handler.body)
