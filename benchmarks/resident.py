"""Resident memory of a process while something runs, and processes of their own to measure it in."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

_INTERVAL = 0.02


def in_its_own_process(module: str, *arguments: str) -> Any:
    """What ``python -m module arguments`` prints as JSON in its last line.

    Raises:
        subprocess.CalledProcessError: It fails.
    """
    done = subprocess.run([sys.executable, "-m", module, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def watch(run: Callable[[], object]) -> tuple[float, int, list[tuple[float, int]]]:
    """Seconds that a call takes, the most resident bytes above those before it, and all of them.

    Returns:
        Seconds, the peak, and (seconds since the begin, resident bytes above those before) all along.
    """
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
    return seconds, max((nbytes for _, nbytes in curve), default=0), curve
