"""Programs that a model wrote: scored as ``evaluate`` scores them, and kept from the machine they run on."""

import itertools
import os
import sys
from pathlib import Path

import pytest

from recurrent_gemma.evaluation import load_tasks
from recurrent_gemma.evaluation.code_eval import CodeEval, pass_at_k, run_program, supplied_code_eval
from tests.evaluation.make_data import LOCAL_DATA
from tests.evaluation.planted import PlantedLM, run
from tests.support import require

GIB = 2**30


def _run(program: str, timeout: float = 20.0) -> dict[str, object]:
    return run_program(program, timeout=timeout, memory=GIB)


@pytest.mark.parametrize(
    ("program", "result"),
    [
        ("def f(): return 1\nassert f() == 1", "passed"),
        ("assert 1 == 2, 'no'", "failed: AssertionError: no"),
        ("def f(:", "failed: SyntaxError: "),
        ("import sys\nsys.exit(0)", "failed: SystemExit: 0"),
        ("import os\nos._exit(0)", "failed: ended with exit code 0"),
        ("input()", "failed: EOFError: "),
        ("print('x' * 10**6)", "passed"),
        ("import collections, datetime, functools, heapq, itertools, math, random, re, string, typing", "passed"),
        ("open('own', 'w').write('x')\nassert open('own').read() == 'x'", "passed"),
        ("import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()", "passed"),
    ],
)
def test_outcomes(program: str, result: str):
    outcome = _run(program)
    assert outcome["result"].startswith(result)
    assert outcome["passed"] == (result == "passed")


@pytest.mark.parametrize(
    "program",
    [
        "import os\nos.fork()",
        "import os\nos.system('true')",
        "import os\nos.posix_spawn('/bin/true', ['true'], {})",
        "import os\nos.execv('/bin/true', ['true'])",
        "import subprocess\nsubprocess.run(['true'])",
        "import multiprocessing\nmultiprocessing.Process(target=print).start()",
        "import _posixsubprocess",
        "import socket\nsocket.socket()",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9/')",
        "import ctypes\nctypes.CDLL(None)",
        "import os\nos.kill(os.getppid(), 9)",
        "open('/etc/passwd')",
        "import os\nos.open('/etc/passwd', os.O_RDONLY)",
        "open('../beside', 'w')",
        "import os\nos.symlink('/etc', 'etc')",
        "import os\nos.chdir('/')\nopen('etc/passwd')",
        "import os\nos.remove('x')",
        "import shutil\nshutil.rmtree('/nowhere')",
    ],
)
def test_what_programs_are_denied(program: str):
    outcome = _run(program)
    assert not outcome["passed"]
    assert "denied" in outcome["result"] or outcome["result"].startswith("failed: ended"), outcome


def test_nothing_is_written_outside(tmp_path: Path):
    target = tmp_path / "target"
    target.write_text("before")
    for program in (f"open({str(target)!r}, 'w')", f"import os\nos.truncate({str(target)!r}, 0)",
                    f"import pathlib\npathlib.Path({str(target)!r}).unlink()"):  # fmt: skip
        assert "denied" in _run(program)["result"]
    assert target.read_text() == "before" and list(tmp_path.iterdir()) == [target]


def test_the_denials_come_from_the_sandbox(tmp_path: Path):
    # The same programs do what they try where nothing stops them.
    exec(f"import os\nopen({str(tmp_path / 'a')!r}, 'w').close()\nos.remove({str(tmp_path / 'a')!r})", {})
    exec("import socket\nsocket.socket().close()", {})


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        "import time\ntime.sleep(60)",
        "while True:\n    try:\n        while True: pass\n    except Exception: pass",
    ],
)
def test_endless_programs_end(program: str):
    assert _run(program, timeout=1.0) == {"passed": False, "result": "timed out"}


def test_a_program_that_outwits_its_timer_ends(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("recurrent_gemma.evaluation.code_eval._GRACE", 3.0)
    program = "import time\nwhile True:\n    try:\n        time.sleep(60)\n    except BaseException: pass"
    assert _run(program, timeout=0.5) == {"passed": False, "result": "timed out"}


def test_the_timer_does_not_wait_for_the_process_to_be_killed(monkeypatch: pytest.MonkeyPatch):
    # By then this program would have passed.
    monkeypatch.setattr("recurrent_gemma.evaluation.code_eval._GRACE", 60.0)
    assert _run("import time\ntime.sleep(10)", timeout=0.5) == {"passed": False, "result": "timed out"}


def test_memory_and_files_are_limited():
    assert _run("x = bytearray(2 * 2**30)")["result"].startswith("failed: MemoryError")
    assert _run("x = bytearray(2**28)")["passed"]
    assert _run("open('own', 'wb').write(bytes(2**22))")["result"].startswith("failed: OSError")


def test_a_program_sees_no_environment_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("A_SECRET", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert _run("import os\nassert 'A_SECRET' not in os.environ and os.listdir() == []\nopen('own', 'w')")["passed"]
    assert list(tmp_path.iterdir()) == []


def test_programs_run_isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "planted_module.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "ModuleNotFoundError" in _run("import planted_module")["result"]
    assert _run("import sys\nassert sys.flags.isolated and sys.dont_write_bytecode")["passed"]


ADD = ["def add(a, b): return a + b", "def add(a, b): return a * b", "def add(a, b): return b + a"]


def test_compute_counts_candidates():
    metric = CodeEval(confirm_run_unsafe_code=True)
    tests = ["assert add(2, 3) == 5", "assert add(2, 2) == 4"]
    rates, results = metric.compute(references=tests, predictions=[ADD, [ADD[1], ADD[1]]], k=[1, 2, 3], timeout=20)
    # pass@3 has no meaning for the problem with two candidates.
    assert rates == pytest.approx({"pass@1": (2 / 3 + 1) / 2, "pass@2": 1.0})
    assert [[outcome["passed"] for _, outcome in results[problem]] for problem in (0, 1)] == [
        [True, False, True],
        [True, True],
    ]
    assert results[0][1] == (
        1,
        {"task_id": 0, "completion_id": 1, "passed": False, "result": "failed: AssertionError: "},
    )


@pytest.mark.parametrize(("total", "correct", "k"), [(1, 0, 1), (1, 1, 1), (5, 2, 1), (5, 2, 3), (5, 4, 2), (6, 1, 4)])
def test_pass_at_k_is_the_share_of_draws_with_a_correct_one(total: int, correct: int, k: int):
    draws = list(itertools.combinations([True] * correct + [False] * (total - correct), k))
    assert pass_at_k(total, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_refusals():
    for answer in (False, None, "yes"):
        with pytest.raises(ValueError, match="confirm_run_unsafe_code: expected True"):
            CodeEval(confirm_run_unsafe_code=answer)  # type: ignore[arg-type]
    metric = CodeEval(confirm_run_unsafe_code=True)
    with pytest.raises(ValueError, match="predictions: expected the candidates of 1 problems, got 2"):
        metric.compute(references=["pass"], predictions=[["pass"], ["pass"]])
    with pytest.raises(ValueError, match="timeout, num_workers: expected positive numbers, got 0"):
        metric.compute(references=["pass"], predictions=[["pass"]], timeout=0)


def test_the_metric_is_supplied_while_loading_alone():
    evaluate = require("evaluate")
    original, modules = evaluate.load, dict(sys.modules)
    loaded = load_tasks("recurrent_gemma_humaneval", data_dir=LOCAL_DATA, unsafe_code=True)
    assert loaded["tasks"]["humaneval"].UNSAFE_CODE is True
    assert evaluate.load is original
    names = [name for name in sys.modules if name.startswith("lm_eval.tasks.") and name.endswith("humaneval.utils")]
    assert [name for name in names if sys.modules[name] is not modules.get(name)] == []


def test_the_block_gives_back_what_was_there_when_it_fails(monkeypatch: pytest.MonkeyPatch):
    evaluate = require("evaluate")
    asked = []
    monkeypatch.setattr(evaluate, "load", lambda *args, **kwargs: asked.append(args))
    monkeypatch.setitem(sys.modules, "lm_eval.tasks.mbpp.utils", os)
    original, metric = evaluate.load, CodeEval(confirm_run_unsafe_code=True)

    def fails_inside() -> None:
        with supplied_code_eval(metric):
            assert evaluate.load("code_eval") is metric
            evaluate.load("accuracy")
            assert "lm_eval.tasks.mbpp.utils" not in sys.modules
            raise KeyError

    with pytest.raises(KeyError):
        fails_inside()
    assert evaluate.load is original and sys.modules["lm_eval.tasks.mbpp.utils"] is os
    assert asked == [("accuracy",)]


def test_lm_eval_asks_for_confirmation_as_well():
    lm_eval = require("lm_eval")
    loaded = load_tasks("recurrent_gemma_mbpp", data_dir=LOCAL_DATA, unsafe_code=True)
    with pytest.raises(ValueError, match="marked as unsafe"):
        lm_eval.simple_evaluate(model=PlantedLM([]), tasks=loaded["selected"], task_manager=loaded["manager"])


def test_a_humaneval_program_that_never_ends_is_a_failure():
    results = run("recurrent_gemma_humaneval", PlantedLM([], otherwise="    while True: pass\n"))
    assert results["recurrent_gemma_humaneval"]["pass@1,create_test"] == 0
