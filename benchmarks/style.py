"""How the committed pictures look, and how they are written: the same file from one run to the next."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "DejaVu Sans",
    "font.size": 11,
    # Text as outlines and fixed ids: the same picture everywhere, and the same file from one run to the next.
    "svg.fonttype": "path",
    "svg.hashsalt": "recurrent-gemma",
}


@contextmanager
def drawing(**changes: Any) -> Iterator[None]:
    """Within it, pictures are drawn without a screen, in this style with ``changes``."""
    mpl.use("agg")
    with plt.rc_context({**STYLE, **changes}):
        yield


def save(figure: Figure, path: Path) -> None:
    """Write the picture, in the format of the path's suffix, and forget it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, metadata=metadata, facecolor="white", dpi=150)
    plt.close(figure)
