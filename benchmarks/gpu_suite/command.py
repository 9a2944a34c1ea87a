"""``python -m benchmarks gpu``: correctness on the GPU, and only then its speed."""

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.gpu_suite import bandwidth
from benchmarks.gpu_suite.correctness import Check, check_model, check_ops, expect_passed
from benchmarks.models import SIZES
from benchmarks.suite.command import DOCS, run
from benchmarks.suite.measure import Case
from benchmarks.suite.rows import Budget, Row, floor

NAME = "performance_gpu"
BATCH = 8
_PEERS = (("in-tree",), ("gemma",))


def _row(name: str, case: str, *lengths: int, **options: Any) -> Row:
    return Row(f"gpu-{name}", case, "2b", lengths, dtype="bfloat16", device="cuda", **{"repeats": 10, **options})


CORRECTNESS = (_row("ops", "ops-correctness", 0), _row("model", "model-correctness", 0))
SPEED = (
    _row("peak", "peak", 0),
    *(_row(f"prefill-2b-{n}", "prefill", n, groups=_PEERS, budgets=floor(1.25)) for n in (2048, 4096)),
    _row("decode-2b", "decode", 16, groups=_PEERS, budgets=floor(1.25)),
    *(_row(f"train-2b-{n}", "train", n, groups=_PEERS, budgets=floor(1.4)) for n in (2048, 4096)),
    _row("train-memory-2b", "train-memory", 2048, 4096, budgets=(Budget("ours", 1.0, over="in-tree"),)),
    # 0.85 of the bandwidth.
    _row("rg-lru", "rg-lru", 8192, budgets=(Budget("ours", 1.18),)),
    _row("rg-lru-training", "rg-lru-training", 8192, budgets=(Budget("ours", 1.18),)),
    _row("profile-2b", "profile", 2048, tokens=32),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the GPU suite."""
    names = [row.name for row in SPEED]
    parser.add_argument("--only", nargs="+", choices=names, metavar="ROW", help="rows of speed (default: all)")
    parser.add_argument("--again", action="store_true", help="measure rows anew that the folder holds already")
    parser.add_argument("--output", type=Path, metavar="DIR", help="for results, pictures and tables (default: docs)")


def main(options: argparse.Namespace, environment: dict[str, Any], console: Console) -> int:
    """Compare the GPU with the CPU and, if it gives the same numbers, measure it.

    Returns:
        The exit code: 2 without a GPU, 1 if numbers differ or a row failed, else 0.
    """
    if missing := missing_for_gpu():
        print(f"gpu: {missing}", file=sys.stderr)
        return 2
    environment = {**environment, "gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    folder = DOCS if options.output is None else options.output
    rows = [row for row in SPEED if options.only is None or row.name in options.only]
    return run_gpu(CORRECTNESS, rows, folder, environment, console, again=options.again)


def run_gpu(
    correctness: tuple[Row, ...],
    speed: list[Row],
    folder: Path,
    environment: dict[str, Any],
    console: Console,
    *,
    again: bool,
    cases: Mapping[str, Case] | None = None,
) -> int:
    """Rows of correctness, and those of speed if all of these pass; see :func:`main`."""
    common = {"quick": False, "cases": cases or CASES}
    # Every time: the kernels may have changed since.
    failed = run(correctness, folder, NAME, environment, console, again=True, **common)
    if failed:
        console.print("Nothing is timed until the numbers are those of the CPU.")
        return failed
    return run(speed, folder, NAME, environment, console, again=again, **common)


def missing_for_gpu() -> str:
    """What this machine lacks, empty if nothing."""
    if not torch.backends.cuda.is_built():
        return f"expected a PyTorch built with CUDA, got {torch.__version__}; install one from pytorch.org."
    if not torch.cuda.is_available():
        return "expected a CUDA device, got none: PyTorch sees no GPU, or no driver for it."
    return ""


def _ops(row: Row) -> dict[str, Any]:
    return checked("every op with its gradients, against its reference on the CPU", check_ops(row.device))


def _model(row: Row) -> dict[str, Any]:
    return checked("the small model, against itself on the CPU", check_model(row.device))


def checked(work: str, checks: list[Check]) -> dict[str, Any]:
    expect_passed(checks)
    return {"work": work, "checks": [dataclasses.asdict(check) for check in checks]}


def _peak(row: Row) -> dict[str, Any]:
    return {"work": "the fastest product of two large matrices", "peak": bandwidth.peak(row.device, dtype=row.dtype)}


def _rg_lru(row: Row) -> dict[str, Any]:
    training = row.case == "rg-lru-training"
    length, width = row.lengths[0], SIZES[row.size].hidden_size
    result = bandwidth.rg_lru_alone(
        row.device,
        batch=BATCH,
        length=length,
        width=width,
        dtype=row.dtype,
        training=training,
        repeats=row.repeats,
    )
    timings = {name: list(timing.seconds) for name, timing in result.timings.items()}
    # What moving our bytes at the measured bandwidth would take, in every round.
    timings["floor"] = [result.bytes["ours"] / result.bandwidth] * len(timings["ours"])
    return {
        "work": f"rg_lru alone, ({BATCH}, {length:,}, {width:,}), {'forward and backward' if training else 'forward'}",
        "unit": "s",
        "groups": [timings],
        "bytes": result.bytes,
        "bandwidth": result.bandwidth,
        "left_out": result.left_out,
    }


CASES: dict[str, Case] = {
    "ops-correctness": _ops,
    "model-correctness": _model,
    "peak": _peak,
    "rg-lru": _rg_lru,
    "rg-lru-training": _rg_lru,
}
