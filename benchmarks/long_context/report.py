"""What was measured: the pictures, and the tables of docs/evidence.md whose names begin with ``long-context/``."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import pages
from benchmarks.long_context.measure import WHOLE, title
from benchmarks.style import drawing, save

PREFIX = "long-context/"
COLOURS = {
    WHOLE: "#0b7285",
    "reset": "#c2255c",
    "far-reset": "#e8590c",
    "recurrence-reset": "#5f3dc4",
    "attention-off": "#2b8a3e",
    "narrow": "#868e96",
}


def write(folder: Path, results: dict[str, Any]) -> list[Path]:
    """Draw the pictures into ``folder/images`` and renew the tables of ``folder/evidence.md`` if it is there."""
    written = []
    makers = {"": _positions, "_since_reset": _since_reset, "_passkey": _passkey}
    for suffix, make in makers.items():
        path = folder / "images" / f"long_context{suffix}.svg"
        with drawing(**{"font.size": 9}):
            save(make(results), path)
        written.append(path)
    return written + pages.renew_file(folder / "evidence.md", lambda page: renew(page, results))


def renew(page: str, results: dict[str, Any]) -> str:
    """``page`` with every block ``<!-- table long-context/NAME -->`` filled from the results, and no other.

    Raises:
        ValueError: The page asks for a table of that prefix that does not exist.
    """

    def table(name: str) -> str | None:
        if not name.startswith(PREFIX):
            return None
        if name not in TABLES:
            raise ValueError(f"table: expected one of {sorted(TABLES)}, got {name!r}.")
        return TABLES[name](results)

    return pages.renew(page, table)


def _run_table(results: dict[str, Any]) -> str:
    machine, model, positions = results["environment"], results["model"], results["positions"]
    reads = " and ".join(f"{read['count']:,} of {read['length']:,}" for read in positions["excerpts"])
    rows = {
        "model": f"{model['name']}, {model['parameters']:,} parameters, window {model['window']:,}, {model['dtype']}",
        "text": f"{results['text']}: {positions['documents']:,} documents, {positions['text_tokens']:,} tokens",
        "excerpts": f"{reads} tokens, {positions['tokens_read']:,} in all, read by each variant",
        "hardware": f"{machine['hardware']} ({machine['cpu_capability']}), {machine['threads']} threads",
        "versions": f"torch {machine['torch']}, transformers {machine['transformers']}, Python {machine['python']}",
        "time": f"{results['seconds'] / 60:.0f} minutes",
    }
    return pages.markdown_table(["", ""], [[name, value] for name, value in rows.items()])


def _parts_table(results: dict[str, Any]) -> str:
    overall, window = results["positions"]["overall"], results["model"]["window"]
    rows = []
    for variant, found in overall.items():
        others = [signed(found.get(key)) for key in ("difference", "difference_by_document")]
        rows.append([title(variant, window), perplexity(found["loss"]), *others])
    block = results["positions"]["block"]
    heading = ["", "perplexity", f"loss more than whole, by blocks of {block}", "the same, by documents"]
    return pages.markdown_table(heading, rows)


def _position_table(results: dict[str, Any]) -> str:
    window, positions = results["model"]["window"], results["positions"]
    variants = [variant for variant in positions["overall"] if variant != WHOLE]
    low, high = positions["reference"]
    heading = ["position", "tokens", "perplexity, whole", f"loss, against {low:,} to {high:,}"]
    heading += [title(variant, window, short=True) for variant in variants]
    rows = []
    for found in positions["bins"]:
        is_reference = [found["first"], found["last"]] == positions["reference"]
        cells = [_span(found["first"], found["last"]), f"{found['tokens']:,}", perplexity(found["loss"][WHOLE])]
        cells.append("" if is_reference else signed(found["drift"]))
        rows.append(cells + [signed(found["difference"][variant]) for variant in variants])
    return pages.markdown_table(heading, rows)


def _since_reset_table(results: dict[str, Any]) -> str:
    window, found = results["model"]["window"], results["positions"]["since_reset"]
    spans = sorted({(entry["first"], entry["last"]) for entries in found.values() for entry in entries})
    rows = []
    for span in spans:
        cells = []
        for entries in found.values():
            present = [entry for entry in entries if (entry["first"], entry["last"]) == span]
            cells.append(signed(present[0]["difference"]) if present else "")
        rows.append([_span(*span), *cells])
    return pages.markdown_table(["tokens read since", *(title(variant, window) for variant in found)], rows)


def _passkey_table(results: dict[str, Any]) -> str:
    rows = [
        [
            f"{cell['length']:,}",
            f"{cell['depth']:g}",
            f"{cell['distance']:,.0f}",
            "yes" if cell["inside_window"] else "no",
            share(cell["first"]),
            f"{cell['mean_rank']:.2f}",
            signed(cell["gain"]),
            share(cell["exact"]),
        ]
        for cell in results["passkey"]
    ]
    heading = ["length", "depth", "tokens back", "in the window", "key first", "mean rank", "nats gained", "exact"]
    return pages.markdown_table(heading, rows)


TABLES = {
    f"{PREFIX}{name}": make
    for name, make in {
        "run": _run_table,
        "parts": _parts_table,
        "position": _position_table,
        "since-reset": _since_reset_table,
        "passkey": _passkey_table,
    }.items()
}


def _span(first: int, last: int) -> str:
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"


def perplexity(interval: Sequence[float]) -> str:
    mean, low, high = map(math.exp, interval)
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def signed(interval: Sequence[float] | None) -> str:
    if interval is None:
        return ""
    mean, low, high = interval
    if low == high == 0:
        return "0"
    # As many digits as tell the ends apart: a difference may be thousands of times smaller than another.
    digits = min(5, max(3, 1 - math.floor(math.log10(max(high - low, 1e-9)))))
    return f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def share(interval: Sequence[float]) -> str:
    mean, low, high = (100 * end for end in interval)
    return f"{mean:.0f} % ({low:.0f} to {high:.0f})"


def _positions(results: dict[str, Any]) -> Figure:
    """Perplexity against position, and what each part's absence adds to the loss."""
    window, positions = results["model"]["window"], results["positions"]
    figure, (whole, parts) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    bins = positions["bins"]
    at = [math.sqrt(found["first"] * found["last"]) for found in bins]
    for variant in positions["overall"]:
        perplexities = [[math.exp(end) for end in found["loss"][variant]] for found in bins]
        # The bands of the others would cover it: they stand around the differences, on the right.
        _line(whole, at, perplexities, variant, title(variant, window), band=variant == WHOLE)
        if variant != WHOLE:
            _line(parts, at, [found["difference"][variant] for found in bins], variant, title(variant, window))
    whole.set_title("Perplexity", loc="left")
    whole.set_yscale("log")
    low, high = whole.get_ylim()
    ticks = [tick for tick in (5, 10, 15, 20, 25, 30, 40, 60, 100, 200, 400, 1000) if low <= tick <= high]
    whole.set_yticks(ticks, [str(tick) for tick in ticks])
    parts.set_title("Loss more than whole, nats", loc="left")
    parts.axhline(0, color="0.5", linewidth=1)
    for axes in (whole, parts):
        _position_axis(axes, window, bins[-1]["last"])
        axes.set_xlabel("position of the predicted token")
    handles, labels = whole.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _since_reset(results: dict[str, Any]) -> Figure:
    """How the loss comes back after a reset."""
    window, found = results["model"]["window"], results["positions"]["since_reset"]
    figure, axes = plt.subplots(figsize=(6.5, 3.8), layout="constrained")
    for variant, entries in found.items():
        at = [math.sqrt(entry["first"] * entry["last"]) for entry in entries]
        _line(axes, at, [entry["difference"] for entry in entries], variant, title(variant, window))
    axes.axhline(0, color="0.5", linewidth=1)
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set_yticks([0, 0.01, 0.1, 1], ["0", "0.01", "0.1", "1"])
    axes.set_ylim(bottom=-0.01)
    _position_axis(axes, window, max(entry["last"] for entries in found.values() for entry in entries))
    axes.set_xlabel("tokens read since the reset")
    axes.set_title("Loss more than whole, nats (linear below 0.01)", loc="left")
    axes.legend(frameon=False)
    return figure


def _line(
    axes: Axes,
    at: Sequence[float],
    intervals: Sequence[Sequence[float]],
    variant: str,
    label: str,
    *,
    band: bool = True,
) -> None:
    mean, low, high = zip(*intervals, strict=True)
    if band:
        axes.fill_between(at, low, high, color=COLOURS[variant], alpha=0.2, lw=0)
    # Above the others, which it may equal.
    zorder = 3 if variant == WHOLE else 2
    axes.plot(at, mean, color=COLOURS[variant], label=label, linewidth=1.8, marker="o", markersize=3, zorder=zorder)


def _position_axis(axes: Axes, window: int, last: int) -> None:
    axes.set_xscale("log", base=2)
    ticks = [4**power for power in range(10) if 4**power <= last]
    axes.set_xticks(ticks, [f"{tick // 1024}k" if tick >= 1024 else str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.axvline(window, color="0.7", linestyle=":", linewidth=1)
    axes.grid(color="0.93")


def _passkey(results: dict[str, Any]) -> Figure:
    """Over length and depth: how often the key is first, what its likelihood gains, and how often it is written."""
    cells = results["passkey"]
    lengths = list(dict.fromkeys(cell["length"] for cell in cells))
    depths = list(dict.fromkeys(cell["depth"] for cell in cells))
    most = max(0.5, *(abs(cell["gain"][0]) for cell in cells))
    panels = {
        "first": (f"Key first (chance {cells[0]['chance']:.0%})", "{:.0%}", {"vmin": 0, "vmax": 1, "cmap": "Blues"}),
        "gain": ("Nats gained", "{:+.2f}", {"vmin": -most, "vmax": most, "cmap": "PuOr"}),
        "exact": ("Key written", "{:.0%}", {"vmin": 0, "vmax": 1, "cmap": "Blues"}),
    }
    figure, grid = plt.subplots(1, len(panels), figsize=(11, 3.2), layout="constrained")
    for axes, (measure, (heading, form, colours)) in zip(grid, panels.items(), strict=True):
        values = {(cell["length"], cell["depth"]): cell[measure][0] for cell in cells}
        image = [[values[length, depth] for length in lengths] for depth in depths]
        axes.imshow(image, aspect="auto", **colours)
        for cell in cells:
            x, y, value = lengths.index(cell["length"]), depths.index(cell["depth"]), cell[measure][0]
            dark = abs(value) > 0.6 * colours["vmax"]
            axes.text(x, y, form.format(value), ha="center", va="center", color="white" if dark else "black")
            if cell["inside_window"]:
                frame = {"fill": False, "edgecolor": COLOURS["reset"], "linewidth": 1.2}
                axes.add_patch(plt.Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, **frame))
        axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
        axes.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
        axes.set_xlabel("tokens of the text")
        axes.set_ylabel("depth of the key")
        axes.set_title(heading, loc="left")
        axes.spines[:].set_visible(False)
    return figure
