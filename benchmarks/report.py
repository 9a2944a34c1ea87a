"""What a run prints and writes: a table for people, JSON for programs, and the machine that both were made on."""

import dataclasses
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
import transformers
from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from benchmarks.conversion import ConversionCase
from benchmarks.field import Entrant
from benchmarks.memory import MemoryResult
from benchmarks.op_profile import KINDS, ProfileResult
from benchmarks.peers import PEERS
from benchmarks.prefix_cache import PrefixCacheResult
from benchmarks.shared_contexts import SharedContextsResult
from benchmarks.speed import SpeedResult
from benchmarks.timing import Timing
from benchmarks.train_memory import TrainMemoryResult

Result = (
    SpeedResult
    | TrainMemoryResult
    | MemoryResult
    | PrefixCacheResult
    | ProfileResult
    | ConversionCase
    | SharedContextsResult
)

# Each changes what allocating and freeing large temporaries costs.
_ALLOCATOR_PREFIXES = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


def environment() -> dict[str, Any]:
    """Hardware, load, threads and versions of this process."""
    return {
        "hardware": _hardware_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "allocator_settings": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_ALLOCATOR_PREFIXES)},
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def as_dict(case: str, options: dict[str, Any], machine: dict[str, Any], result: Result) -> dict[str, Any]:
    """Everything a run found, in JSON's types."""
    report = {"case": case, "options": options, "environment": machine, "result": dataclasses.asdict(result)}
    if isinstance(result, SpeedResult):
        report["summary"] = {name: _summary(name, result) for name in result.timings}
    return report


def write(path: Path, report: dict[str, Any]) -> None:
    """Write the report as JSON."""
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def show(console: Console, case: str, size: str, machine: dict[str, Any], result: Result) -> None:
    """Print the report."""
    console.print(
        f"{machine['hardware']} ({machine['cpu_capability']}), threads {machine['threads']}, cores {machine['cores']}, "
        f"load {machine['load_average']}\ntorch {machine['torch']}, transformers {machine['transformers']}\n"
        f"allocator: {_allocator_note(machine['allocator_settings'])}",
        highlight=False,
    )
    if isinstance(result, SpeedResult):
        _show_speed(console, case, size, result)
    elif isinstance(result, TrainMemoryResult):
        _show_train_memory(console, case, size, result)
    elif isinstance(result, MemoryResult):
        _show_memory(console, result)
    elif isinstance(result, ProfileResult):
        _show_profile(console, case, size, result)
    elif isinstance(result, ConversionCase):
        _show_conversion(console, result)
    elif isinstance(result, SharedContextsResult):
        _show_shared_contexts(console, result)
    else:
        _show_prefix_cache(console, result)


def _show_speed(console: Console, case: str, size: str, result: SpeedResult) -> None:
    table = Table(title=f"{case} {size}: {result.work}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for heading in ("median ms", "fastest", "slowest", "x floor", "x ours"):
        table.add_column(heading, justify="right", no_wrap=True)
    floor, ours = result.timings["floor"], result.timings["ours"]
    for name, timing in result.timings.items():
        table.add_row(
            name,
            *(f"{1e3 * seconds:.4g}" for seconds in (timing.median, *timing.spread)),
            "" if timing is floor else _ratio(timing.over(floor)),
            "" if timing in (floor, ours) else _ratio(timing.over(ours)),
        )
    console.print(table)
    agreement = result.agreement
    console.print(
        f"{len(ours.seconds)} interleaved rounds after one to warm up; ratios within a round: median (least - most).\n"
        f"floor: {result.floor}, at {result.floor_rate}\n"
        f"largest difference of ours and in-tree (its window W + 1) on equal weights: logits {agreement.prefill:.1g}, "
        f"decoding {agreement.decode:.1g}, gradients {agreement.gradients:.1g} of the largest",
        highlight=False,
    )
    for name, entrant in result.entrants.items():
        console.print(f"{name}: {_about(name, entrant)}", highlight=False)
    for name, reason in result.left_out.items():
        console.print(f"{name}: left out, since {reason}", highlight=False)


def _about(name: str, entrant: Entrant) -> str:
    facts = [f"{entrant.parameters:,} parameters"]
    if entrant.state_bytes:
        facts.append(f"state {decimal(entrant.state_bytes)}")
    if name in PEERS:
        what = "logits and loss differ from ours" if PEERS[name].same_weights else "its decoding and single pass differ"
        facts.append(f"{what} by {entrant.difference:.1g}")
    return "; ".join([*facts, *([entrant.note] if entrant.note else [])])


def _show_train_memory(console: Console, case: str, size: str, result: TrainMemoryResult) -> None:
    table = Table(
        title=f"{case} {size}: one step beyond weights and gradients", title_justify="left", box=box.SIMPLE_HEAD
    )
    table.add_column("tokens", justify="right")
    names = list(dict.fromkeys(step.implementation for step in result.steps))
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for length in dict.fromkeys(step.length for step in result.steps):
        peaks = {step.implementation: step.peak_bytes for step in result.steps if step.length == length}
        table.add_row(f"{length:,}", *(decimal(peaks[name]) for name in names))
    console.print(table)
    console.print(
        f"weights {decimal(result.weight_bytes)}, gradients as much; logits of the longest row in fp32 alone: "
        f"{decimal(result.logits_bytes)}",
        highlight=False,
    )


def _show_profile(console: Console, case: str, size: str, result: ProfileResult) -> None:
    table = Table(title=f"{case} {size}: % of the time, by kind of op", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for name, part in result.parts.items():
        table.add_column(f"{name} ({1e3 * part.seconds:.4g} ms)", justify="right")
    for kind in KINDS:
        shares = (100 * part.by_kind[kind] / sum(part.by_kind.values()) for part in result.parts.values())
        table.add_row(kind, *(f"{share:.1f}" for share in shares))
    console.print(table)


def _show_memory(console: Console, result: MemoryResult) -> None:
    table = Table(title=f"memory of generation: {result.model}", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("tokens", "cache", "process (RSS)", "time per token"):
        table.add_column(heading, justify="right")
    for sample in result.samples:
        table.add_row(
            f"{sample.tokens:,}",
            f"{sample.cache_bytes:,} B",
            f"{sample.rss_bytes / 2**20:.1f} MiB",
            f"{1e3 * sample.seconds_per_token:.3g} ms",
        )
    console.print(table)
    console.print(
        f"slope, bytes per token: cache {result.cache_slope:+.4g}, process {result.rss_slope:+.4g}\n"
        f"final state against a reread in chunks: largest difference {result.reread_difference:.1e} of the largest\n"
        f"process, last - first: {result.samples[-1].rss_bytes - result.samples[0].rss_bytes:+,} bytes",
        highlight=False,
    )


def _show_conversion(console: Console, result: ConversionCase) -> None:
    title = (
        f"conversion of {result.model}: {decimal(result.nbytes)}, largest weight file {decimal(result.shard_bytes)}, "
        f"largest tensor {decimal(result.tensor_bytes)}"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("from", "to", "seconds", "rate", "memory", "at most"):
        table.add_column(heading, justify="left" if heading in ("from", "to") else "right", no_wrap=True)
    for step in result.steps:
        rate = f"{decimal(int(result.nbytes / step.seconds))}/s"
        figures = (f"{step.seconds:.1f}", rate, decimal(step.peak_bytes), decimal(step.bound_bytes))
        table.add_row(step.source, step.target, *figures)
    console.print(table)
    console.print(
        "memory: resident, at its peak, above that of the process before. What came back is the original bit for bit."
    )


def _show_shared_contexts(console: Console, result: SharedContextsResult) -> None:
    for work in result.works:
        title = f"{work.requests} log-likelihoods, {work.name}: {result.model}"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for heading in ("", "median s", "fastest", "slowest", "tokens read"):
            table.add_column(heading, justify="right", no_wrap=True)
        for name, timing in work.timings.items():
            seconds = (f"{value:.4g}" for value in (timing.median, *timing.spread))
            table.add_row(name, *seconds, f"{work.tokens_read[name]:,}")
        console.print(table)
        ratio = _ratio(work.timings["plain"].ratios_to(work.timings["shared"]))
        console.print(f"plain / shared: {ratio}; largest difference {work.difference:.1g}", highlight=False)


def _show_prefix_cache(console: Console, result: PrefixCacheResult) -> None:
    table = Table(title=f"{result.work}: {result.model}", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("", "median ms", "fastest", "slowest"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, timing in result.timings.items():
        table.add_row(name, *(f"{1e3 * seconds:.4g}" for seconds in (timing.median, *timing.spread)))
    console.print(table)
    console.print(f"cold / warm: {_ratio(result.timings['cold'].ratios_to(result.timings['warm']))}", highlight=False)
    title = f"token hit rate on {result.requests} branching requests, 2B in bfloat16"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("bytes", "flops_per_byte", "lru", "whole caches, lru"):
        table.add_column(heading, justify="right")
    for rates in result.hit_rates:
        figures = (rates.flops_per_byte, rates.lru, rates.whole_caches)
        table.add_row(f"{rates.max_bytes / 1e6:.0f} MB", *(f"{100 * rate:.1f} %" for rate in figures))
    console.print(table)


def _summary(name: str, result: SpeedResult) -> dict[str, Any]:
    timing = result.timings[name]
    return {
        "median_seconds": timing.median,
        "spread_seconds": timing.spread,
        "ratio_to_floor": timing.over(result.timings["floor"]).median,
        "ratio_to_ours": timing.over(result.timings["ours"]).median,
    }


def _ratio(ratios: Timing) -> str:
    low, high = ratios.spread
    return f"{ratios.median:.3g} ({low:.3g}-{high:.3g})"


def _allocator_note(settings: dict[str, str]) -> str:
    if settings:
        return ", ".join(f"{name}={value}" for name, value in settings.items())
    return (
        "defaults (no MALLOC_*, GLIBC_TUNABLES, LD_PRELOAD); glibc maps and unmaps large temporaries anew, "
        "at a cost to ours and in-tree alike that the floor does not have"
    )


def _hardware_name() -> str:
    # platform.processor() knows only the architecture on Linux.
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
