"""The speed cases: prefill, training step and decoding, of the floor, of ours and of its peers, in one process."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from benchmarks.agreement import Agreement
from benchmarks.field import Entrant, Field, build_field
from benchmarks.floor import MatrixProducts, WeightRead
from benchmarks.models import Size, random_ids
from benchmarks.peers import DEFAULT_PEERS, Contestant, Decoding, UnavailableError
from benchmarks.timing import Timing, clock, interleave, measure_within

DECODE_PROMPT = 16

Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class SpeedResult:
    """What one speed case found.

    Attributes:
        work: What was timed, in words.
        floor: What the floor is, in words.
        floor_rate: The floor's rate, from its median: what this machine gave at best in this process.
        floor_amount: Multiplications and additions of the floor, or its bytes.
        agreement: How far ours and in-tree were apart before anything was timed.
        timings: Seconds of ``floor``, ``ours`` and the peers.
        entrants: What else is known of ours and the peers.
        left_out: Peers that did not take part, and why.
        once: Peers that were measured once, without a round to warm up.
    """

    work: str
    floor: str
    floor_rate: str
    floor_amount: int
    agreement: Agreement
    timings: dict[str, Timing]
    entrants: dict[str, Entrant]
    left_out: dict[str, str]
    once: tuple[str, ...]


def prefill(
    size: Size,
    *,
    length: int,
    repeats: int,
    device: str = "cpu",
    dtype: str = "float32",
    peers: tuple[str, ...] = DEFAULT_PEERS,
    seconds: float | None = None,
) -> SpeedResult:
    """Read a prompt of ``length`` tokens: a cache and the logits of its last token."""
    found = build_field("prefill", size, peers=peers, device=device, dtype=dtype)
    ids = random_ids(size, length, device=device)
    products = MatrixProducts(found.ours.model, length, logits=1)
    work = _prepared(found, lambda contestant: clock(contestant.prefill(ids)))
    timings, once = _measure({"floor": clock(products), **work}, repeats, seconds)
    return SpeedResult(
        work=f"prefill of {length:,} tokens (with a cache, logits of the last token)",
        floor="the model's matrix products alone",
        floor_rate=f"{products.flops / timings['floor'].median / 1e9:.0f} GFLOP/s",
        floor_amount=products.flops,
        **_rest(found, timings, once),
    )


def train(
    size: Size,
    *,
    length: int,
    repeats: int,
    device: str = "cpu",
    dtype: str = "float32",
    peers: tuple[str, ...] = DEFAULT_PEERS,
    seconds: float | None = None,
) -> SpeedResult:
    """One training step on one row of ``length`` tokens: forward, loss at every token, backward, AdamW.

    As Trainer asks for it: with the number of labels, and nothing but the loss is read. Ours and in-tree train the same
    parameters with the same optimizer, so their weights are equal at every step.
    """
    found = build_field("train", size, peers=peers, device=device, dtype=dtype)
    ids = random_ids(size, length, device=device)
    products = MatrixProducts(found.ours.model, length, logits=length)
    work = _prepared(found, lambda contestant: clock(contestant.training_step(ids)))
    # The backward of a product is two of its size, with respect to either factor.
    timings, once = _measure({"floor": clock(products, scale=3.0), **work}, repeats, seconds)
    return SpeedResult(
        work=f"training step of {length:,} tokens (forward, loss, backward, AdamW)",
        floor="three times the matrix products of the forward",
        floor_rate=f"{3 * products.flops / timings['floor'].median / 1e9:.0f} GFLOP/s",
        floor_amount=3 * products.flops,
        **_rest(found, timings, once),
    )


def decode(
    size: Size,
    *,
    tokens: int,
    repeats: int,
    context: int = DECODE_PROMPT,
    device: str = "cpu",
    dtype: str = "float32",
    peers: tuple[str, ...] = DEFAULT_PEERS,
    seconds: float | None = None,
) -> SpeedResult:
    """One token through generate(), greedy: the mean over ``tokens`` tokens, the prompt and the first one not counted.

    The prompt of ``context`` tokens is read once; every round goes on from a copy of what was kept of it.

    Raises:
        ValueError: ``tokens`` is below 1, or ``context`` below 2.
    """
    if tokens < 1:
        raise ValueError(f"tokens: expected at least 1, got {tokens}.")
    if context < 2:
        raise ValueError(f"context: expected at least 2, got {context}.")
    found = build_field("decode", size, peers=peers, device=device, dtype=dtype)
    prompt = random_ids(size, context, device=device)
    read = WeightRead(found.ours.model)

    decodings: dict[str, Decoding] = _prepared(found, lambda contestant: contestant.decoding(prompt, tokens))
    for name, decoding in decodings.items():
        found.entrants[name] = replace(found.entrants[name], state_bytes=decoding.state_bytes)
    work = {name: decoding.seconds_per_token for name, decoding in decodings.items()}
    timings, once = _measure({"floor": read, **work}, repeats, seconds)
    return SpeedResult(
        work=f"one token through generate() (mean of {tokens:,} after a prompt of {context:,})",
        floor=f"reading the weights' {read.bytes / 1e6:.1f} MB once",
        floor_rate=f"{read.bytes / timings['floor'].median / 1e9:.1f} GB/s",
        floor_amount=read.bytes,
        **_rest(found, timings, once),
    )


def _prepared(found: Field, prepare: Callable[[Contestant], Prepared]) -> dict[str, Prepared]:
    """What is timed of each contestant; who cannot prepare it is left out."""
    works = {}
    for name, contestant in list(found.contestants.items()):
        try:
            works[name] = prepare(contestant)
        except UnavailableError as reason:
            found.left_out[name] = str(reason)
            del found.contestants[name], found.entrants[name]
    return works


def _measure(
    work: dict[str, Callable[[], float]], repeats: int, seconds: float | None
) -> tuple[dict[str, Timing], tuple[str, ...]]:
    if seconds is None:
        return interleave(work, repeats=repeats), ()
    return measure_within(work, repeats=repeats, seconds=seconds)


def _rest(found: Field, timings: dict[str, Timing], once: tuple[str, ...]) -> dict:
    return {
        "agreement": found.agreement,
        "timings": timings,
        "entrants": found.entrants,
        "left_out": found.left_out,
        "once": once,
    }
