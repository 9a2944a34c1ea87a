"""Optional dependencies, asked for where they are used: the package imports without them."""

import importlib
from types import ModuleType


def require_extra(module: str, *, extra: str, needed_by: str, distribution: str | None = None) -> ModuleType:
    """The imported module, or an error that says how to install it.

    Args:
        module: Of the top level, such as ``"lm_eval"``.
        extra: The extra that brings it.
        needed_by: What cannot do without, and its verb: ``"serving needs"``.
        distribution: What it is called where it is installed from, if not like the module.

    Raises:
        ImportError: It is not installed.
        ModuleNotFoundError: It is, and something that it imports is not.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ImportError(
            f'{distribution or module} is not installed, which {needed_by}: pip install "recurrent-gemma[{extra}]"',
            name=module,
        ) from error


__all__ = ["require_extra"]
