"""Transformers' own test modules as a package of another name, since both projects call theirs ``tests``.

The source distribution leaves out some modules that the others import. They are replaced by the little that is needed
of them here: an empty mixin where tests are missing as a whole, and our values where data is.
"""

import contextlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest

from tests.support import REQUIRE_EXTRAS, require
from tests.upstream.fetch import COMMAND, folder

PACKAGE = "transformers_tests"

# Fields that every config of Transformers has, each with a value that is not its default.
_COMMON_FIELDS = {
    "return_dict": False,
    "output_hidden_states": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 3,
    "architectures": ["SomeModel"],
    "id2label": {0: "only"},
    "label2id": {"only": 0},
    "problem_type": "regression",
}
_MISSING = {
    "exporters": {},
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation": {},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils": {},
    "utils.test_configuration_utils": {"config_common_kwargs": _COMMON_FIELDS},
}


def load(name: str) -> ModuleType:
    """The module ``tests/<name>.py`` of Transformers; callable at a test module's top level.

    Raises:
        pytest.skip.Exception: The sources have not been downloaded.
        pytest.fail.Exception: The same, in continuous integration.
    """
    sources = folder()
    if not sources.is_dir():
        reason = f"the tests of the installed Transformers are not in {sources}: {COMMAND}"
        if os.environ.get(REQUIRE_EXTRAS) == "1":
            pytest.fail(f"{reason} ({REQUIRE_EXTRAS}=1 makes this a failure)", pytrace=False)
        pytest.skip(reason, allow_module_level=True)
    require("parameterized")
    if PACKAGE not in sys.modules:
        _add_package(sources)
    with _transformers_stays_one_module():
        return importlib.import_module(f"{PACKAGE}.{name}")


def markers() -> list[str]:
    """Names of the pytest marks that Transformers' tests carry; its own configuration would register them."""
    if not folder().is_dir():
        return []
    texts = [path.read_text(encoding="utf-8") for path in (*folder().glob("*.py"), _testing_utils())]
    return sorted({name for text in texts for name in re.findall(r"\bmark\.([a-z]\w*)", text)})


def _testing_utils() -> Path:
    specification = importlib.util.find_spec("transformers")
    assert specification is not None and specification.origin is not None
    return Path(specification.origin).with_name("testing_utils.py")


def _add_package(sources: Path) -> None:
    package = ModuleType(PACKAGE)
    package.__path__ = [str(sources)]
    sys.modules[PACKAGE] = package
    for name, contents in _MISSING.items():
        module = ModuleType(f"{PACKAGE}.{name}")
        module.__dict__.update(contents)
        if "." not in name:
            module.__path__ = []
        sys.modules[module.__name__] = module


@contextlib.contextmanager
def _transformers_stays_one_module() -> Iterator[None]:
    """Some modules would import Transformers a second time, out of a checkout that is not there."""
    import transformers

    with mock.patch("transformers.utils.direct_transformers_import", return_value=transformers):
        yield
