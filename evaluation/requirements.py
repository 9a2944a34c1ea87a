"""The extra that evaluation needs, asked for where it is used: the package imports without it."""

import importlib
from types import ModuleType


def require_lm_eval() -> ModuleType:
    """The module ``lm_eval``.

    Raises:
        ImportError: It is not installed.
    """
    return _require("lm_eval", "lm-eval")


def require_matplotlib() -> ModuleType:
    """The module ``matplotlib``.

    Raises:
        ImportError: It is not installed.
    """
    return _require("matplotlib", "matplotlib")


def _require(module: str, distribution: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:
            raise
        raise ImportError(
            f'{distribution} is not installed, which evaluation needs: pip install "recurrent-gemma[eval]"',
            name=package,
        ) from error


__all__ = ["require_lm_eval", "require_matplotlib"]
