"""The extra that evaluation needs, asked for where it is used."""

from types import ModuleType

from recurrent_gemma.extras import require_extra


def require_lm_eval() -> ModuleType:
    """The module ``lm_eval``.

    Raises:
        ImportError: It is not installed.
    """
    return require_extra("lm_eval", extra="eval", needed_by="evaluation needs", distribution="lm-eval")


def require_matplotlib() -> ModuleType:
    """The module ``matplotlib``.

    Raises:
        ImportError: It is not installed.
    """
    return require_extra("matplotlib", extra="eval", needed_by="evaluation needs")


__all__ = ["require_lm_eval", "require_matplotlib"]
