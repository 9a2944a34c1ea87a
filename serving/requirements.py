"""The extra that serving needs, asked for where it is used: the package imports without it."""

import importlib
from types import ModuleType


def require_vllm() -> ModuleType:
    """The module ``vllm``.

    Raises:
        ImportError: It is not installed.
    """
    try:
        return importlib.import_module("vllm")
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise
        raise ImportError(
            'vllm is not installed, which serving needs: pip install "recurrent-gemma[serve]"', name="vllm"
        ) from error


__all__ = ["require_vllm"]
