"""Interleaved repeated measurement.

Every round runs every contestant once, so what changes on the machine meanwhile (clock speed, other programs) hits all
of them alike, and ratios are taken within a round.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one contestant, one figure a round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """Fastest and slowest round."""
        return min(self.seconds), max(self.seconds)

    def ratios_to(self, other: "Timing") -> "Timing":
        """This contestant's time over the other's, round by round.

        Raises:
            ValueError: The two were measured in different numbers of rounds.
        """
        if len(self.seconds) != len(other.seconds):
            raise ValueError(
                f"other: expected as many rounds as here ({len(self.seconds)}), got {len(other.seconds)}; compare "
                "timings of one measurement."
            )
        return Timing(tuple(ours / theirs for ours, theirs in zip(self.seconds, other.seconds, strict=True)))

    def over(self, other: "Timing") -> "Timing":
        """As ``ratios_to``; a contestant that was measured once is compared with the other's median."""
        if len(self.seconds) == 1:
            return Timing((self.seconds[0] / other.median,))
        if len(other.seconds) == 1:
            return Timing(tuple(seconds / other.seconds[0] for seconds in self.seconds))
        return self.ratios_to(other)


def clock(work: Callable[[], object], *, scale: float = 1.0) -> Callable[[], float]:
    """A contestant that runs ``work`` and returns ``scale`` times the seconds it took, freeing its result included.

    What an accelerator still has to do counts to the work that asked for it.
    """

    def timed() -> float:
        synchronize()
        begin = time.perf_counter()
        work()
        synchronize()
        return scale * (time.perf_counter() - begin)

    return timed


def synchronize() -> None:
    """Wait until an accelerator, if there is one in use, has done all it was asked for."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def free_memory() -> None:
    """Collect contestants that are gone, and hand back what an accelerator's allocator keeps of them."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def interleave(contestants: Mapping[str, Callable[[], float]], *, repeats: int, warmup: int = 1) -> dict[str, Timing]:
    """Run all contestants in turn, ``repeats`` times, each round starting with the next one.

    Args:
        contestants: Name -> a callable that does its work once and returns the seconds it counts.
        repeats: Rounds whose figures are kept.
        warmup: Rounds before them whose figures are dropped.

    Returns:
        Name -> timing, in the order of ``contestants``.

    Raises:
        ValueError: ``repeats`` is below 1, ``warmup`` is negative, or a contestant returns no positive finite number.
    """
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, got {repeats}.")
    if warmup < 0:
        raise ValueError(f"warmup: expected at least 0, got {warmup}.")
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    # Whatever is alive by now, imported libraries above all, stays out of every collection.
    gc.freeze()
    try:
        for round_number in range(-warmup, repeats):
            first = round_number % len(names)
            for name in names[first:] + names[:first]:
                # One contestant's cycles must not be collected on another one's time.
                gc.collect()
                taken = contestants[name]()
                if not (math.isfinite(taken) and taken > 0):
                    raise ValueError(f"{name}: expected a positive number of seconds, got {taken!r}.")
                if round_number >= 0:
                    seconds[name].append(taken)
    finally:
        gc.unfreeze()
    return {name: Timing(tuple(rounds)) for name, rounds in seconds.items()}


def measure_within(
    contestants: Mapping[str, Callable[[], float]], *, repeats: int, seconds: float
) -> tuple[dict[str, Timing], tuple[str, ...]]:
    """As ``interleave``, in about so many seconds: the slowest contestants are measured once if the time asks for it.

    The round to warm up tells what a round takes. While three rounds of all would take longer than ``seconds``, the
    slowest contestant stays out of them, and its figure is the one of that first round. The first two contestants stay
    in, whatever they take: ratios are taken to them.

    Args:
        contestants: As in ``interleave``; the first two are what the others are compared with.
        repeats: Rounds at most.
        seconds: Of wall-clock time, beyond the round to warm up.

    Returns:
        Name -> timing, in the order of ``contestants``, and the names of those that were measured once.
    """
    wall: dict[str, float] = {}

    def watched(name: str) -> Callable[[], float]:
        def run() -> float:
            begin = time.perf_counter()
            taken = contestants[name]()
            wall[name] = time.perf_counter() - begin
            return taken

        return run

    first = interleave({name: watched(name) for name in contestants}, repeats=1, warmup=0)
    kept, fewest = list(contestants), min(repeats, 3)
    while len(kept) > 2 and fewest * sum(wall[name] for name in kept) > seconds:
        kept.remove(max(kept[2:], key=lambda name: wall[name]))
    rounds = max(fewest, min(repeats, int(seconds / sum(wall[name] for name in kept))))
    rest = interleave({name: contestants[name] for name in kept}, repeats=rounds, warmup=0)
    return {name: rest.get(name, first[name]) for name in contestants}, tuple(n for n in contestants if n not in kept)
