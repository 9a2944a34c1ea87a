"""``python -m benchmarks long-context``: what a checkpoint's state carries, measured, drawn and written into tables."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.learning.command import DOCS
from benchmarks.long_context import texts
from benchmarks.long_context.measure import measure_passkey, measure_positions

NAME = "long_context"
COUNT, ROUNDS, BATCH_SIZE = 8, 16, 8
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
# Lengths of the passkey's prompts, in windows.
WINDOWS = (0.75, 1, 2, 4, 16)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the case."""
    parser.add_argument("--model", type=Path, metavar="DIR", help="checkpoint (default: the embedded demo model)")
    parser.add_argument("--text", type=Path, metavar="FILE", help="long text (default: the demo model's held-out one)")
    parser.add_argument("--length", type=int, help="tokens of an excerpt (default: all of the text)")
    parser.add_argument("--count", type=int, help=f"excerpts (default {COUNT})")
    parser.add_argument("--rounds", type=int, help=f"of passkeys, for each length and depth (default {ROUNDS})")
    parser.add_argument(
        "--passkey-lengths", nargs="+", type=int, metavar="N", help=f"tokens (default: {WINDOWS} windows)"
    )
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="rows at a time (default %(default)s)")
    parser.add_argument("--device", default="cpu", help="such as cuda (default %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default %(default)s")
    parser.add_argument("--redraw", action="store_true", help="tables and pictures anew, from results that are there")
    parser.add_argument("--output", type=Path, metavar="DIR", help="for anything but the default (default: docs)")


def main(options: argparse.Namespace, environment: dict[str, Any], console: Console) -> None:
    """Measure what the options ask for, and write results, pictures and tables.

    Raises:
        ValueError: Results of another model, text or size would replace those in docs/.
    """
    from benchmarks.long_context import report  # matplotlib is needed for nothing else here

    own = ("model", "text", "length", "count", "rounds", "passkey_lengths")
    given = [name for name in own if getattr(options, name) is not None]
    if given and options.output is None:
        raise ValueError(
            f"output: expected a folder together with {', '.join(given)}, as docs/ holds the demo model's results."
        )
    folder = DOCS if options.output is None else options.output
    path = folder / "data" / f"{NAME}.json"
    if not options.redraw:
        results = _measure(options, environment, lambda line: console.print(line, highlight=False, soft_wrap=True))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    written = report.write(folder, json.loads(path.read_text(encoding="utf-8")))
    console.print("wrote " + ", ".join(str(each) for each in [path, *written]), highlight=False, soft_wrap=True)


def _measure(options: argparse.Namespace, environment: dict[str, Any], say: Any) -> dict[str, Any]:
    started = time.perf_counter()
    subject = texts.load(options.model, options.text, device=options.device, dtype=options.dtype)
    config = subject.model.config
    window = config.attention_window_size
    count, rounds = options.count or COUNT, options.rounds or ROUNDS
    lengths = options.passkey_lengths or [int(windows * window) for windows in WINDOWS]
    positions = measure_positions(
        subject, length=options.length, count=count, batch_size=options.batch_size, report=say
    )
    cells = measure_passkey(
        subject, lengths=lengths, depths=DEPTHS, rounds=rounds, batch_size=options.batch_size, report=say
    )
    return {
        "environment": environment,
        "model": {
            "name": subject.name,
            "parameters": sum(parameter.numel() for parameter in subject.model.parameters()),
            "window": window,
            "attention_blocks": config.layers_block_type.count("sliding_attention"),
            "dtype": options.dtype,
        },
        "text": subject.text,
        "seconds": round(time.perf_counter() - started),
        "positions": positions,
        "passkey": cells,
    }
