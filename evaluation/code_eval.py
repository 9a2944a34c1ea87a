"""The metric ``code_eval`` (pass@k of programs that are run against tests) without a hub, in a sandbox, and opt-in."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_SANDBOX = Path(__file__).with_name("sandbox.py").resolve()
# Importing lm-eval's modules of these tasks loads the metric and runs a program with it.
_MODULES = ("lm_eval.tasks.humaneval.utils", "lm_eval.tasks.mbpp.utils")
# Seconds on top of a program's own for an interpreter to start and report; a program that outwits the timer ends here.
_GRACE = 10.0


class CodeEval:
    """What ``evaluate.load("code_eval")`` gives, with the same arguments and results.

    Args:
        confirm_run_unsafe_code: Must be true: programs that a model has written are run on this machine.
        memory: Bytes of address space that a program may have.

    Raises:
        ValueError: Running such programs is not confirmed.
        NotImplementedError: This system has no limits for processes.
    """

    def __init__(self, *, confirm_run_unsafe_code: bool, memory: int = 2**30) -> None:
        if confirm_run_unsafe_code is not True:
            raise ValueError(
                "confirm_run_unsafe_code: expected True, for programs that a model has written run on this machine, "
                f"got {confirm_run_unsafe_code!r}."
            )
        if os.name != "posix":
            raise NotImplementedError("code_eval: programs are run under POSIX limits, which this system lacks.")
        self._memory = memory

    def compute(
        self,
        references: Sequence[str],
        predictions: Sequence[Sequence[str]],
        k: Sequence[int] = (1, 10, 100),
        num_workers: int = 4,
        timeout: float = 3.0,
    ) -> tuple[dict[str, float], dict[int, list[tuple[int, dict[str, Any]]]]]:
        """Run every candidate with its problem's tests.

        Args:
            references: The tests of each problem.
            predictions: The candidates of each problem.
            k: Numbers of samples that pass@k is estimated for; those beyond a problem's candidates are left out.
            num_workers: Programs at a time.
            timeout: Seconds that one may take.

        Returns:
            The mean pass@k of the problems by name, and for each problem the outcome of each candidate.

        Raises:
            ValueError: The numbers of ``references`` and ``predictions`` differ, or a number is not positive.
        """
        if len(references) != len(predictions):
            raise ValueError(
                f"predictions: expected the candidates of {len(references)} problems, got {len(predictions)}."
            )
        if timeout <= 0 or num_workers < 1:
            raise ValueError(f"timeout, num_workers: expected positive numbers, got {timeout} and {num_workers}.")
        jobs = [
            (problem, number, f"{candidate}\n{tests}")
            for problem, (tests, candidates) in enumerate(zip(references, predictions, strict=True))
            for number, candidate in enumerate(candidates)
        ]
        with ThreadPoolExecutor(max_workers=num_workers) as pool:
            outcomes = list(pool.map(lambda job: run_program(job[2], timeout=timeout, memory=self._memory), jobs))
        results: dict[int, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
        for (problem, number, _), outcome in zip(jobs, outcomes, strict=True):
            results[problem].append((number, {"task_id": problem, "completion_id": number, **outcome}))
        counts = [
            (len(candidates), sum(outcome["passed"] for _, outcome in candidates)) for candidates in results.values()
        ]
        rates = {
            f"pass@{samples}": sum(pass_at_k(total, correct, samples) for total, correct in counts) / len(counts)
            for samples in k
            if counts and all(total >= samples for total, _ in counts)
        }
        return rates, results


def pass_at_k(total: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of ``k`` samples is correct (Chen et al., 2021, equation 1).

    Args:
        total: Samples drawn, at least ``k``.
        correct: Those that are correct.
        k: Samples that one may try.
    """
    return 1.0 - math.comb(total - correct, k) / math.comb(total, k)


def run_program(program: str, *, timeout: float, memory: int) -> dict[str, Any]:
    """Run a program in a process of its own, with limits, in a directory of its own that is removed.

    Returns:
        ``{"passed": bool, "result": "passed" | "timed out" | "failed: ..."}``.
    """
    with tempfile.TemporaryDirectory(prefix="code-eval-") as directory:
        # Isolated: without the user's packages and environment, but for what an interpreter may need to start. One
        # thread, for their stacks are address space as well.
        environment = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        environment |= {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(_SANDBOX), str(timeout), str(memory)],
            cwd=directory,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(program.encode(errors="replace"), timeout=timeout + _GRACE)
        except subprocess.TimeoutExpired:
            return {"passed": False, "result": "timed out"}
        finally:
            # Whatever it may have started is of its session.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode == -signal.SIGXCPU:
        return {"passed": False, "result": "timed out"}
    try:
        outcome = json.loads(output)
        return {"passed": outcome["passed"] is True, "result": str(outcome["result"])}
    except (KeyError, TypeError, ValueError):
        return {"passed": False, "result": f"failed: ended with exit code {process.returncode}"}


@contextlib.contextmanager
def supplied_code_eval(metric: CodeEval) -> Iterator[None]:
    """lm-eval's code tasks that are loaded in this block use ``metric``; outside of it nothing has changed."""
    import evaluate

    original = evaluate.load
    before = {name: sys.modules.pop(name) for name in _MODULES if name in sys.modules}

    def load(path: str, *args: Any, **kwargs: Any) -> Any:
        return metric if path == "code_eval" else original(path, *args, **kwargs)

    evaluate.load = load
    try:
        yield
    finally:
        evaluate.load = original
        for name in _MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(before)


__all__ = ["CodeEval", "pass_at_k", "run_program", "supplied_code_eval"]
