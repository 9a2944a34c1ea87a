"""Measures one row, into what the results file holds of it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import speed
from benchmarks.memory import generation_memory, model_for_memory
from benchmarks.models import SIZES
from benchmarks.op_profile import profile
from benchmarks.suite.rows import Row
from benchmarks.timing import free_memory
from benchmarks.train_memory import train_memory

Case = Callable[[Row], dict[str, Any]]


def measure(row: Row, cases: Mapping[str, Case] | None = None) -> dict[str, Any]:
    """What the row's case finds, in JSON's types.

    Args:
        row: The row.
        cases: Cases besides those of this module.

    Returns:
        ``work``: what was measured, in words. ``unit``: ``"s"`` or ``"bytes"``. ``groups``: for each group, contestant
        -> figures, one a round (of memory: one a length). Of speed besides: ``floor``, ``floor_amount`` (operations or
        bytes), ``floor_rates`` (one a group), ``agreement``, ``entrants``, ``left_out`` and ``once``. Of the profile:
        ``parts`` in place of groups.

    Raises:
        ValueError: Implementations disagree.
    """
    return {**CASES, **(cases or {})}[row.case](row)


def _speed(row: Row) -> dict[str, Any]:
    size, length = SIZES[row.size], row.lengths[0]
    common = {"repeats": row.repeats, "device": row.device, "dtype": row.dtype, "seconds": row.seconds}
    results = []
    for peers in row.groups:
        if row.case == "decode":
            results.append(speed.decode(size, tokens=row.tokens, context=length, peers=peers, **common))
        else:
            case = {"prefill": speed.prefill, "train": speed.train}[row.case]
            results.append(case(size, length=length, peers=peers, **common))
        free_memory()
    return {
        "work": results[0].work,
        "unit": "s",
        "floor": results[0].floor,
        "floor_amount": results[0].floor_amount,
        "floor_rates": [result.floor_rate for result in results],
        "groups": [{name: timing.seconds for name, timing in result.timings.items()} for result in results],
        "agreement": dataclasses.asdict(results[0].agreement),
        "entrants": {name: dataclasses.asdict(e) for result in results for name, e in result.entrants.items()},
        "left_out": {name: reason for result in results for name, reason in result.left_out.items()},
        "once": [name for result in results for name in result.once],
    }


def _train_memory(row: Row) -> dict[str, Any]:
    result = train_memory(row.size, lengths=list(row.lengths), device=row.device, dtype=row.dtype)
    names = dict.fromkeys(step.implementation for step in result.steps)
    peaks = {name: [s.peak_bytes for s in result.steps if s.implementation == name] for name in names}
    return {
        "work": "memory of a training step beyond weights and gradients, at its peak",
        "unit": "bytes",
        "groups": [peaks],
        "weight_bytes": result.weight_bytes,
        "logits_bytes": result.logits_bytes,
    }


def _generation_memory(row: Row) -> dict[str, Any]:
    every, tokens = row.lengths
    model, name = model_for_memory(row.size)
    result = generation_memory(model, name, tokens=tokens, every=every)
    first, last = result.samples[0], result.samples[-1]
    return {
        "work": f"memory of one sequence that grows from {first.tokens:,} to {last.tokens:,} tokens, {name}",
        "unit": "bytes",
        "groups": [
            {
                "cache, first": [first.cache_bytes],
                "cache, last": [last.cache_bytes],
                "process, first": [first.rss_bytes],
                "process, last": [last.rss_bytes],
            }
        ],
        "reread_difference": result.reread_difference,
    }


def _profile(row: Row) -> dict[str, Any]:
    size = SIZES[row.size]
    result = profile(size, length=row.lengths[0], tokens=row.tokens, device=row.device, dtype=row.dtype)
    return {"work": "where the time of ours goes, by kind of op", "unit": "s", **dataclasses.asdict(result)}


CASES: dict[str, Case] = {
    "prefill": _speed,
    "train": _speed,
    "decode": _speed,
    "train-memory": _train_memory,
    "memory": _generation_memory,
    "profile": _profile,
}
