"""Runs tests on mutants, each in a process forked from one that holds every library already."""

import importlib
import itertools
import linecache
import math
import multiprocessing
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.machinery import SourceFileLoader
from multiprocessing import connection
from pathlib import Path
from typing import Any

import coverage
import pytest

from tests.mutation.mutants import Mutant

_FORK = multiprocessing.get_context("fork")
_OWN = ("recurrent_gemma", "tests", "configuration", "modeling", "__")
# Plain assertions: nobody reads them, and pytest could not rewrite what is imported already.
_OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "--assert=plain")


# A mutant that waits for ever is ended after this many seconds. One that computes for ever is ended by its CPU time.
_LONGEST_WAIT = 900


class _Watch:
    """Notes the CPU time of each test that runs and the first that fails; tells coverage which one runs."""

    def __init__(self, measured: coverage.Coverage | None = None) -> None:
        self.measured = measured
        self.seconds: dict[str, float] = {}
        self.failed: str | None = None
        self._began = 0.0

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._began = time.process_time()
        if self.measured is not None:
            self.measured.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid
        if report.when == "call" and report.passed:
            self.seconds[report.nodeid] = time.process_time() - self._began


class Server:
    """The tests of a target, and what they reach.

    Args:
        sources: The files that are mutated.
        tests: Arguments of pytest. All of them have to pass.
    """

    def __init__(self, sources: Sequence[Path], tests: Sequence[str]) -> None:
        process, result = _fork(_measure, list(sources), list(tests))
        failed, seconds, reached, modules = result.recv()
        process.join()
        if failed is not None:
            raise RuntimeError(f"{failed} fails without a mutant")
        self.seconds: dict[str, float] = seconds
        self._reached: dict[str, dict[int, list[str]]] = reached
        self._kills: dict[str, int] = {}
        _import(modules)

    def tests_of(self, mutant: Mutant, budget: float) -> list[str]:
        """The tests that reach it, up to ``budget`` seconds: first those that noticed most mutants, then the shortest.

        All of them where none is known to reach it, as for what runs when a module is imported.
        """
        by_line = self._reached.get(str(mutant.path), {})
        reaching = {test for line in mutant.lines for test in by_line.get(line, ())} & self.seconds.keys()
        tests = sorted(reaching or self.seconds, key=lambda test: (-self._kills.get(test, 0), self.seconds[test]))
        spent = itertools.accumulate(self.seconds[test] for test in tests)
        return tests[: max(1, sum(seconds <= budget for seconds in spent))]

    def run(self, mutants: Iterable[Mutant], jobs: int, budget: float) -> Iterator[tuple[Mutant, str, str | None]]:
        """Each mutant, in the order of their ends, with ``killed``, ``timeout`` or ``survived`` and who noticed it."""
        waiting = iter(mutants)
        running: dict[int, tuple[Mutant, Any, connection.Connection, float]] = {}
        while True:
            while len(running) < jobs and (mutant := next(waiting, None)) is not None:
                tests = self.tests_of(mutant, budget)
                limit = 10 + 5 * math.ceil(sum(self.seconds[test] for test in tests))
                process, result = _fork(_test, mutant, tests, limit)
                running[process.sentinel] = mutant, process, result, time.monotonic() + _LONGEST_WAIT
            if not running:
                return
            ended = connection.wait(list(running), timeout=5.0)
            overdue = {sentinel for sentinel, (*_, deadline) in running.items() if time.monotonic() > deadline}
            for sentinel in overdue.difference(ended):
                os.killpg(running[sentinel][1].pid, signal.SIGXCPU)
            for sentinel in ended:
                mutant, process, result, _ = running.pop(sentinel)  # type: ignore[call-overload]
                process.join()
                try:
                    code, test = result.recv()
                except EOFError:  # it crashed, or its time is up
                    code, test = process.exitcode, None
                result.close()
                if test is not None:
                    self._kills[test] = self._kills.get(test, 0) + 1
                end = "timeout" if code == -signal.SIGXCPU else "killed" if code else "survived"
                yield mutant, end, test


def _fork(function: Callable[..., Any], *args: Any) -> tuple[Any, connection.Connection]:
    receiver, sender = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_child, args=(sender, function, *args))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # threads that libraries started hold nothing that the tests need
        process.start()
    sender.close()
    return process, receiver


def _child(sender: connection.Connection, function: Callable[..., Any], *args: Any) -> None:
    os.setsid()  # what it starts can be ended with it
    sender.send(function(*args))
    sender.close()


def _measure(sources: list[Path], tests: list[str]) -> tuple:
    measured = coverage.Coverage(data_file=None, include=[str(path) for path in sources], config_file=False)
    watch = _Watch(measured)
    measured.start()
    code = pytest.main([*_OPTIONS, *tests], plugins=[watch])
    measured.stop()
    if code and watch.failed is None:
        watch.failed = f"collecting {tests}"
    data = measured.get_data()
    reached = {str(path): data.contexts_by_lineno(str(path)) for path in sources}
    return watch.failed, watch.seconds, reached, [name for name in sys.modules if not name.startswith(_OWN)]


def _import(modules: Sequence[str]) -> None:
    """Import what the tests needed of other packages, so that no child has to."""
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception:  # a module made at run time, or one that wants to be imported by another
            continue


def _test(mutant: Mutant, tests: list[str], limit: int) -> tuple[int, str | None]:
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    path, read = str(mutant.path), SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, fullname: str) -> Any:
        if os.path.realpath(self.path) != path:
            return read(self, fullname)
        lines = mutant.source.splitlines(keepends=True)
        linecache.cache[self.path] = len(mutant.source), None, lines, self.path  # for what compiles from source
        return compile(mutant.source, self.path, "exec", dont_inherit=True)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
    watch = _Watch()
    return int(pytest.main([*_OPTIONS, *tests], plugins=[watch])), watch.failed
