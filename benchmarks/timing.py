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
