"""The tables of docs/performance.md, from a results file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from benchmarks.pages import markdown_table, renew, with_blocks
from benchmarks.peers import PEERS
from benchmarks.suite.results import figures, ratio
from benchmarks.timing import Timing

TITLES = {"floor": "floor", "ours": "ours", **{name: peer.title for name, peer in PEERS.items()}}
NAME = "performance"
NOTHING = "Not measured yet."

Rows = dict[str, dict[str, Any]]


def write(folder: Path, name: str, results: dict[str, Any]) -> Path:
    """Fill the tables of ``folder/performance.md`` that show these results; where there are none, add all of them.

    Blocks of the suite bear the names of :data:`TABLES`; those of other results have their name and a slash before it.

    Raises:
        ValueError: The page has a block that no results could fill.
    """
    path = folder / f"{NAME}.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else "# Performance\n"
    path.write_text(fill(text, name, results), encoding="utf-8")
    return path


def fill(text: str, name: str, results: dict[str, Any]) -> str:
    """The text of a page with its tables of these results; see :func:`write`."""
    prefix = "" if name == NAME else f"{name}/"
    blocks = {prefix + table: make for table, make in TABLES.items()}
    if not any(f"<!-- table {block} -->" in text for block in blocks):
        text = with_blocks(text, blocks)

    def table(block: str) -> str | None:
        if block.rpartition("/")[2] not in TABLES:
            raise ValueError(f"table: expected one of {sorted(TABLES)}, got {block!r}.")
        return (blocks[block](results) or NOTHING) if block in blocks else None

    return renew(text, table)


def _run(results: dict[str, Any]) -> str:
    machine, rows = results["environment"], results["rows"]
    if not rows:
        return ""
    loads = [row["load_average"] for row in rows.values()]
    facts = {
        "machine": f"{machine['hardware']} ({machine['cpu_capability']}), {machine['cores']} cores",
        "threads of torch": machine["threads"],
        "versions": f"torch {machine['torch']}, transformers {machine['transformers']}, Python {machine['python']}",
        "load before the rows": f"{min(loads)} to {max(loads)}",
        "time": f"{sum(row['wall_seconds'] for row in rows.values()) / 60:.0f} minutes",
    }
    if results["options"]["quick"]:
        facts["sizes"] = "tiny ones (`--quick`): no figure means anything"
    return markdown_table(["", ""], [[name, str(value)] for name, value in facts.items()])


def _budgets(results: dict[str, Any]) -> str:
    lines = []
    for name, row in results["rows"].items():
        for budget in row["row"]["budgets"]:
            measured = ratio(row, budget["contestant"], budget["over"])
            verdict = "no result" if measured is None else "met" if measured.median <= budget["at_most"] else "**over**"
            who = f"{_title(budget['contestant'])} / {_title(budget['over'])}"
            lines.append([name, who, _cell(measured), f"{budget['at_most']:.3g}", verdict])
    return lines and markdown_table(["row", "ratio", "measured", "at most", ""], lines)


def _ratios(results: dict[str, Any]) -> str:
    """Prefill, training and decoding: every contestant's ratio to the floor."""
    rows = {n: r for n, r in _of("prefill", "train", "decode")(results).items() if "groups" in r and not _is_context(r)}
    names = _contestants(rows)
    lines = [
        [name, *(_cell(ratio(row, who, "floor")) + _mark(row, who) if who in _present(row) else "" for who in names)]
        for name, row in rows.items()
    ]
    return lines and markdown_table(["row", *map(_title, names)], lines) + "\n\n\\* measured once, without a warm-up."


def _times(results: dict[str, Any]) -> str:
    """The same rows: medians."""
    rows = {n: r for n, r in _of("prefill", "train", "decode")(results).items() if "groups" in r and not _is_context(r)}
    names = ["floor", *_contestants(rows)]
    lines = []
    for name, row in rows.items():
        found = [figures(row, who) for who in names]
        rate = row["floor_rates"][0]
        lines.append([f"{name}: {row['work']}", *("" if f is None else duration(f.median) for f in found), rate])
    return lines and markdown_table(["row", *map(_title, names), "the floor's rate"], lines)


def _context(results: dict[str, Any]) -> str:
    rows = {n: r for n, r in _of("decode")(results).items() if "groups" in r and _is_context(r)}
    names = _contestants(rows)
    lines = []
    for row in rows.values():
        cells = [f"{row['row']['lengths'][0]:,}"]
        for who in names:
            found, entrant = figures(row, who), row["entrants"].get(who)
            cells.append("" if found is None else f"{1 / found.median:.1f} tokens/s, {decimal(entrant['state_bytes'])}")
        lines.append(cells)
    return lines and markdown_table(["context", *map(_title, names)], lines)


def _memory(results: dict[str, Any]) -> str:
    lines = [
        [name, row["work"], who, ", ".join(decimal(int(figure)) for figure in found)]
        for name, row in _of("train-memory", "memory")(results).items()
        for group in row.get("groups", ())
        for who, found in group.items()
    ]
    return lines and markdown_table(["row", "of what", "", "bytes, by length"], lines)


def _ops(results: dict[str, Any]) -> str:
    parts = {
        f"{name}: {work}": part
        for name, row in _of("profile")(results).items()
        for work, part in row.get("parts", {}).items()
    }
    if not parts:
        return ""
    kinds = list(next(iter(parts.values()))["by_kind"])
    lines = [
        [work, duration(part["seconds"])]
        + [f"{100 * part['by_kind'][kind] / sum(part['by_kind'].values()):.0f} %" for kind in kinds]
        for work, part in parts.items()
    ]
    return markdown_table(["work", "under the profiler", *kinds], lines)


def _kernels(results: dict[str, Any]) -> str:
    """The recurrence alone: what it moves at least, over its time, as a part of what copying moves."""
    lines = []
    for row in _of("rg-lru", "rg-lru-training")(results).values():
        for who, nbytes in row.get("bytes", {}).items():
            found = figures(row, who)
            assert found is not None
            share = nbytes / found.median / row["bandwidth"]
            lines.append([row["work"], _title(who), duration(found.median), decimal(nbytes), f"{share:.2f}"])
    return lines and markdown_table(["work", "", "median", "moves at least", "of the bandwidth"], lines)


def _rates(results: dict[str, Any]) -> str:
    """Tokens a second, and how much of the device's peak that is, where the peak was measured."""
    rows, lines = results["rows"], []
    peak = next((row["peak"] for row in rows.values() if "peak" in row), None)
    for name, row in _of("prefill", "train", "decode")(results).items():
        found = figures(row, "ours")
        if found is None or _is_context(row):
            continue
        decodes = row["row"]["case"] == "decode"
        tokens = 1 if decodes else row["row"]["lengths"][0]
        part = f"{row['floor_amount'] / found.median / peak:.2f}" if peak and not decodes else ""
        lines.append([name, f"{tokens / found.median:,.0f}", part])
    return lines and markdown_table(["row", "tokens/s of ours", "of the peak of matrix products"], lines)


def _correctness(results: dict[str, Any]) -> str:
    lines = [
        [check["what"], check["dtype"], f"{check['difference']:.1e}", f"{check['bar']:.0e}"]
        for row in results["rows"].values()
        for check in row.get("checks", ())
    ]
    return lines and markdown_table(["against the CPU", "dtype", "largest difference", "at most"], lines)


def _sizes(results: dict[str, Any]) -> str:
    """Who was measured at a size: parameters, and how far from the reference or itself."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in results["rows"].values():
        for who, entrant in row.get("entrants", {}).items():
            cells = [f"{entrant['parameters']:,}", f"{entrant['difference']:.1g}", entrant["note"]]
            found.setdefault((row["row"]["size"], who), cells)
    lines = [[size, _title(who), *cells] for (size, who), cells in found.items()]
    return lines and markdown_table(["size", "", "parameters", "largest difference of logits", ""], lines)


def _left_out(results: dict[str, Any]) -> str:
    lines = [
        [name, _title(who), reason]
        for name, row in results["rows"].items()
        for who, reason in [*row.get("left_out", {}).items(), *([("ours", row["failed"])] if "failed" in row else [])]
    ]
    if not lines:
        return "Every contestant has a figure in every row." if results["rows"] else ""
    return markdown_table(["row", "", "why there is no figure"], lines)


TABLES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "run": _run,
    "budgets": _budgets,
    "ratios": _ratios,
    "times": _times,
    "context": _context,
    "memory": _memory,
    "ops": _ops,
    "correctness": _correctness,
    "rates": _rates,
    "kernels": _kernels,
    "sizes": _sizes,
    "left-out": _left_out,
}


def _of(*cases: str) -> Callable[[dict[str, Any]], Rows]:
    return lambda results: {name: row for name, row in results["rows"].items() if row["row"]["case"] in cases}


def _is_context(row: dict[str, Any]) -> bool:
    """Whether the row is one of decoding at a length, rather than of what a token takes at least."""
    return row["row"]["name"].startswith("context-")


def _present(row: dict[str, Any]) -> set[str]:
    return {who for group in row["groups"] for who in group}


def _contestants(rows: Rows) -> list[str]:
    """Who was measured in any of the rows, in the order of ``TITLES``, without the floor."""
    present = set().union(*(_present(row) for row in rows.values()))
    return [who for who in TITLES if who in present and who != "floor"]


def _title(who: str) -> str:
    return TITLES.get(who, who)


def _mark(row: dict[str, Any], who: str) -> str:
    return " \\*" if who in row["once"] else ""


def _cell(ratios: Timing | None) -> str:
    if ratios is None:
        return ""
    low, high = ratios.spread
    return f"{ratios.median:.3g} ({low:.3g}-{high:.3g})" if len(ratios.seconds) > 1 else f"{ratios.median:.3g}"


def duration(seconds: float) -> str:
    """In s or ms, three digits."""
    return f"{seconds:.3g} s" if seconds >= 0.9995 else f"{1e3 * seconds:.3g} ms"
