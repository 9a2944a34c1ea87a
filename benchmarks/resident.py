"""Resident memory of this process while something runs."""

import threading
import time
from collections.abc import Callable

import psutil

_INTERVAL = 0.02


def watch(run: Callable[[], object]) -> tuple[float, list[tuple[float, int]]]:
    """Seconds that a call takes, and (seconds since its begin, resident bytes above those before) all along."""
    process = psutil.Process()
    before = process.memory_info().rss
    curve: list[tuple[float, int]] = []
    ended = threading.Event()
    begin = time.perf_counter()

    def sample() -> None:
        while not ended.wait(_INTERVAL):
            curve.append((round(time.perf_counter() - begin, 3), process.memory_info().rss - before))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        run()
    finally:
        seconds = time.perf_counter() - begin
        ended.set()
        sampler.join()
    return seconds, curve
