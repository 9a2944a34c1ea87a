"""The pictures of a results file: decoding against length, ratios to the floor, and time by kind of op."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.op_profile import KINDS
from benchmarks.style import drawing, save
from benchmarks.suite.page import TITLES
from benchmarks.suite.results import figures, ratio

COLOURS = {
    "ours": "#0b7285",
    "ours-compiled": "#15aabf",
    "in-tree": "#868e96",
    "deepmind-torch": "#5f3dc4",
    "deepmind-jax": "#9775fa",
    "gemma": "#c2255c",
    "gemma-3": "#e8590c",
    "lfm2": "#2b8a3e",
}
KIND_COLOURS = dict(
    zip(KINDS, ("#0b7285", "#2b8a3e", "#94d82d", "#e8590c", "#ffd43b", "#5f3dc4", "#c2255c", "#ced4da"), strict=True)
)


def draw(folder: Path, name: str, results: dict[str, Any]) -> list[Path]:
    """Write ``NAME_length.svg``, ``NAME_ratios.svg`` and ``NAME_ops.svg``, as far as there are rows to draw."""
    written = []
    makers: dict[str, Callable[[dict[str, Any]], Figure | None]] = {"length": _length, "ratios": _ratios, "ops": _ops}
    for kind, make in makers.items():
        with drawing():
            figure = make(results["rows"])
            if figure is not None:
                written.append(folder / f"{name}_{kind}.svg")
                save(figure, written[-1])
    return written


def _length(rows: dict[str, Any]) -> Figure | None:
    """Time of a token, and bytes kept, against the tokens that stand before it."""
    rows = {name: row for name, row in rows.items() if name.startswith("context-") and "groups" in row}
    if not rows:
        return None
    figure, (time, memory) = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
    for who in COLOURS:
        found = [(row["row"]["lengths"][0], figures(row, who), row["entrants"].get(who)) for row in rows.values()]
        points = sorted(((n, t, e) for n, t, e in found if t is not None), key=lambda point: point[0])
        if not points:
            continue
        style = {"color": COLOURS[who], "label": TITLES[who], "linewidth": 2, "marker": "o", "markersize": 4}
        at = [length for length, _, _ in points]
        low, high = zip(*(timing.spread for _, timing, _ in points), strict=True)
        between = [[1e3 * seconds for seconds in side] for side in (low, high)]
        time.fill_between(at, *between, color=COLOURS[who], alpha=0.15, lw=0)
        time.plot(at, [1e3 * timing.median for _, timing, _ in points], **style)
        memory.plot(at, [entrant["state_bytes"] / 1e6 for _, _, entrant in points], **style)
    for axes, label in ((time, "ms per token (median, least to most)"), (memory, "MB kept of the sequence")):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("tokens before")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        lengths = sorted(row["row"]["lengths"][0] for row in rows.values())
        axes.set_xticks(lengths, [f"{n // 1024}k" if n >= 1024 else str(n) for n in lengths])
        axes.minorticks_off()
        axes.grid(color="0.92")
    time.set_title("Time of a decoded token", loc="left", fontsize=12)
    memory.set_title("Memory of the sequence", loc="left", fontsize=12)
    memory.legend(frameon=False)
    return figure


def _ratios(rows: dict[str, Any]) -> Figure | None:
    """A line for each row: every contestant's ratio to the floor, and the budget."""
    rows = {
        name: row
        for name, row in rows.items()
        if row["row"]["case"] in ("prefill", "train", "decode") and "groups" in row and not name.startswith("context-")
    }
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(9.5, 1.6 + 0.45 * len(rows)), layout="constrained")
    for y, row in enumerate(reversed(rows.values())):
        # Ours on top of the others.
        for who, colour in reversed(COLOURS.items()):
            found = ratio(row, who, "floor")
            if found is None:
                continue
            low, high = found.spread
            axes.plot([low, high], [y, y], color=colour, linewidth=2, alpha=0.4)
            marker = "o" if who == "ours" else "D"
            axes.plot(found.median, y, marker=marker, color=colour, markersize=8 if who == "ours" else 5, linestyle="")
        for budget in row["row"]["budgets"]:
            if budget["over"] == "floor":
                axes.plot(budget["at_most"], y, marker="|", color="black", markersize=16, linestyle="")
    present = [who for who in COLOURS if any(ratio(row, who, "floor") for row in rows.values())]
    for who in present:
        axes.plot([], [], marker="o" if who == "ours" else "D", color=COLOURS[who], linestyle="", label=TITLES[who])
    axes.plot([], [], marker="|", color="black", markersize=12, linestyle="", label="budget")
    axes.set_yticks(range(len(rows)), list(reversed(rows)))
    axes.set_xscale("log")
    _plain_ticks(axes)
    axes.axvline(1, color="0.6", linewidth=1)
    axes.set_xlabel("times the floor: the model's matrix products alone; decoding: reading its weights once")
    axes.set_title("Time over the floor", loc="left", fontsize=12)
    axes.grid(color="0.92", axis="x")
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    return figure


def _plain_ticks(axes: Axes) -> None:
    low, high = axes.get_xlim()
    ticks = [tick for tick in (0.5, 1, 1.5, 2, 3, 5, 10, 20, 30, 50, 100, 1000, 10_000) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def _ops(rows: dict[str, Any]) -> Figure | None:
    """A stacked bar for each work that was profiled."""
    parts = {
        f"{row['row']['size']}: {work}": part for row in rows.values() for work, part in row.get("parts", {}).items()
    }
    if not parts:
        return None
    figure, axes = plt.subplots(figsize=(9.5, 1.8 + 0.45 * len(parts)), layout="constrained")
    for y, part in enumerate(reversed(parts.values())):
        total, left = sum(part["by_kind"].values()), 0.0
        for kind in KINDS:
            share = 100 * part["by_kind"][kind] / total
            axes.barh(y, share, left=left, color=KIND_COLOURS[kind], height=0.65)
            left += share
    for kind in KINDS:
        axes.barh(0, 0, color=KIND_COLOURS[kind], label=kind)
    axes.set_yticks(range(len(parts)), list(reversed(parts)))
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the time")
    axes.set_title("Where the time goes", loc="left", fontsize=12)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure
