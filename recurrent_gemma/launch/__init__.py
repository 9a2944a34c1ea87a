"""Starts programs that never import this package with its registration active.

``environment()`` puts the folder of ``sitecustomize.py`` first on ``PYTHONPATH``: every Python that inherits it, the
program and its children, runs that file at start-up.
"""

import os
from collections.abc import Mapping
from pathlib import Path


def environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment of a program in which, and in whose children, importing Transformers registers this package.

    It does not reach a Python that ignores ``PYTHONPATH`` (``-I``, ``-E``, ``-S``), nor children for which the program
    replaces ``PYTHONPATH``.

    Args:
        environ: What to start from; default: ``os.environ``. Not changed.
    """
    environ = os.environ if environ is None else environ
    folder = str(Path(__file__).resolve().parent)
    entries = [entry for entry in environ.get("PYTHONPATH", "").split(os.pathsep) if entry not in ("", folder)]
    return {**environ, "PYTHONPATH": os.pathsep.join([folder, *entries])}


__all__ = ["environment"]
