"""``python -m benchmarks serving``: this family and Gemma of equal size, each served by vLLM, under the same load."""

import argparse
import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

import recurrent_gemma
from benchmarks.models import SIZES, build_ours
from benchmarks.peers.gemma import build_gemma
from benchmarks.peers.transformers_model import TransformersModel
from benchmarks.serving.load import Load, Work, load, load_of_generate
from benchmarks.serving.server import running_server

GENERATE = "generate(), no server"
_GIB = 2**30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the case."""
    parser.add_argument("--size", choices=sorted(SIZES), default="512x6", help="width x layers (default %(default)s)")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8], help="at once (default %(default)s)")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt (default %(default)s)")
    parser.add_argument("--answer", type=int, default=64, help="tokens of an answer (default %(default)s)")
    parser.add_argument("--requests", type=int, default=8, help="for each client (default %(default)s)")
    parser.add_argument("--max-model-len", type=int, default=32_768, help="longest sequence (default %(default)s)")
    parser.add_argument("--memory", type=int, default=2, metavar="GIB", help="of the cache (default %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")


def main(options: argparse.Namespace, environment: dict[str, Any], console: Console) -> None:
    """Serve both models one after the other, load them, and show what clients see and what a sequence takes.

    Raises:
        ImportError: vLLM is not installed.
        RuntimeError: A server or a request failed.
    """
    from recurrent_gemma.serving.requirements import require_vllm

    require_vllm()
    work = Work(options.prompt, options.answer, options.requests)
    size = SIZES[options.size]
    ours = build_ours(size)
    gemma: Any = build_gemma(size, TransformersModel(ours))
    gemma.model.config.max_position_embeddings = options.max_model_len
    results: dict[str, Any] = {}
    for name, model in (("recurrent-gemma", ours), ("Gemma", gemma.model)):
        model.to(getattr(torch, options.dtype))
        console.print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters", highlight=False)
        loads = {GENERATE: load_of_generate(model, work)}
        with tempfile.TemporaryDirectory(prefix="serving-") as folder:
            checkpoint = Path(folder) / "model"
            model.save_pretrained(checkpoint)
            AutoTokenizer.from_pretrained(recurrent_gemma.demo_path()).save_pretrained(checkpoint)
            words = ["--dtype", options.dtype, "--max-model-len", str(options.max_model_len)]
            words += ["--kv-cache-memory-bytes", str(options.memory * _GIB)]
            with running_server(checkpoint, Path(folder), options=words) as server:
                for clients in options.clients:
                    loads[f"vLLM, {clients} at once"] = load(server, work, clients, Path(folder))
                longest, concurrency = server.capacity()
        results[name] = {
            "loads": {way: dataclasses.asdict(found) for way, found in loads.items()},
            "longest": longest,
            "sequences": concurrency,
            "bytes_per_sequence": round(options.memory * _GIB / concurrency),
        }
        _show(console, name, loads, results[name])
    if options.json is not None:
        chosen = {name: value for name, value in vars(options).items() if name not in ("case", "json")}
        report = {"environment": {**environment, **_vllm()}, "options": chosen, "results": results}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _vllm() -> dict[str, Any]:
    import vllm

    return {"vllm": vllm.__version__, "threads": os.environ.get("OMP_NUM_THREADS", "vLLM's own choice")}


def _show(console: Console, name: str, loads: dict[str, Load], result: dict[str, Any]) -> None:
    table = Table(title=f"{name}: times are median / 99th percentile", title_justify="left")
    table.add_column("")
    for heading in ("requests/s", "tokens/s", "first token", "next token", "whole answer"):
        table.add_column(heading, justify="right")
    for way, found in loads.items():
        times = (found.first_token, found.next_token, found.whole_answer)
        cells = [f"{1e3 * low:.4g} / {1e3 * high:.4g} ms" for low, high in times]
        table.add_row(way, f"{found.requests_per_second:.3g}", f"{found.tokens_per_second:.4g}", *cells)
    console.print(table)
    console.print(
        f"By vLLM's report its cache holds {result['sequences']:g} sequences of {result['longest']:,} tokens: "
        f"{result['bytes_per_sequence'] / 1e6:.3g} MB each.",
        highlight=False,
    )


__all__ = ["add_arguments", "main"]
