"""Registers recurrent_gemma as soon as Transformers is imported; Python runs this file when it starts.

It stands on the path of every Python below ``recurrent-gemma exec``, other versions and environments included: it uses
the standard library only, and a program that does not import Transformers pays for nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from importlib.machinery import PathFinder

TYPE_CHECKING = False  # `typing` would be the largest part of what this file costs
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any


class _TransformersFinder:
    """Meta path finder that finds ``transformers`` as the others do and adds a step to its loading."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "transformers":
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    loader: Any = _RegisteringLoader(spec.loader)
                    spec.loader = loader
                return spec
        return None


class _RegisteringLoader:
    """Loader that imports ``recurrent_gemma`` after the module; everything else is the original loader's."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        try:
            # If that is what imports Transformers, it is in progress, registers when done, and this does nothing.
            importlib.import_module("recurrent_gemma")
        except ModuleNotFoundError as error:
            if error.name != "recurrent_gemma":
                raise
            # Going on would silently use Transformers' own classes.
            raise ImportError(
                f"`recurrent-gemma exec`: {sys.executable} imports transformers, but recurrent_gemma is not installed "
                "there. Install it in that environment, or start the program without `recurrent-gemma exec`."
            ) from error


def _run_hidden_sitecustomize() -> None:
    # Python imports one sitecustomize only, and this one hides the environment's own.
    here = os.path.dirname(os.path.abspath(__file__))
    spec = PathFinder.find_spec(__name__, [entry for entry in sys.path if os.path.abspath(entry) != here])
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules[__name__] = module
        spec.loader.exec_module(module)


# Not when a tool imports it as part of the package.
if __name__ == "sitecustomize":
    sys.meta_path.insert(0, _TransformersFinder())
    _run_hidden_sitecustomize()
