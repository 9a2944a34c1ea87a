"""The chart of a report: the card's figures and the measured ones, row by row."""

import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from recurrent_gemma.evaluation.requirements import require_matplotlib

if TYPE_CHECKING:
    from recurrent_gemma.evaluation.report import RowResult

# Text as outlines and fixed ids: the same file from one run to the next.
_STYLE = {
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "svg.fonttype": "path",
    "svg.hashsalt": "recurrent-gemma",
}
_CARD_COLOUR, _MEASURED_COLOUR = "#888888", "#0b6bb3"


def draw(results: "Sequence[RowResult]", *, title: str, note: str = "") -> bytes:
    """An SVG of measured rows: the card's figure as a ring, the measured one as a dot with its standard error.

    Args:
        results: Rows that have a figure.
        title: The model.
        note: What whoever sees only the picture has to know.

    Raises:
        ImportError: matplotlib is not installed.
    """
    matplotlib = require_matplotlib()
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7, 1.6 + 0.27 * len(results)), layout="constrained")
        axes = figure.add_subplot()
        for place, result in enumerate(results):
            measured = result.measured or 0.0
            if result.card is not None:
                axes.plot([result.card, measured], [place, place], color=_CARD_COLOUR, linewidth=1, zorder=1)
            axes.errorbar([measured], [place], xerr=[result.standard_error or 0.0], color=_MEASURED_COLOUR, zorder=2)
        card = [(result.card, place) for place, result in enumerate(results) if result.card is not None]
        if card:
            figures, places = zip(*card, strict=True)
            axes.scatter(figures, places, facecolors="white", edgecolors=_CARD_COLOUR, zorder=3, label="card")
        figures = tuple(result.measured or 0.0 for result in results)
        axes.scatter(figures, range(len(results)), s=16, color=_MEASURED_COLOUR, zorder=4, label="measured")
        axes.set_yticks(range(len(results)), [result.row.name for result in results])
        axes.set_ylim(len(results) - 0.5, -0.5)
        axes.set_xlim(0, 100)
        axes.set_xlabel("\n".join(["percent, bars: standard error", *textwrap.wrap(note, 80)]))
        figure.suptitle(title, x=0.02, ha="left")
        figure.legend(frameon=False, loc="outside upper right", ncols=2)
        written = io.BytesIO()
        FigureCanvasSVG(figure).print_svg(written, metadata={"Date": None})
    return written.getvalue()


__all__ = ["draw"]
