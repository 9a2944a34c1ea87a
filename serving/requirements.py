"""The extra that serving needs, asked for where it is used."""

from types import ModuleType

from recurrent_gemma.extras import require_extra


def require_vllm() -> ModuleType:
    """The module ``vllm``.

    Raises:
        ImportError: It is not installed.
    """
    return require_extra("vllm", extra="serve", needed_by="serving needs")


__all__ = ["require_vllm"]
