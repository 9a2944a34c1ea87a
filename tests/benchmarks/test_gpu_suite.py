"""The suite for GPUs, run on a CPU: right ops pass, a wrong one is named, and only what is right is timed."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from benchmarks import report
from benchmarks.__main__ import main
from benchmarks.gpu_suite import bandwidth, command
from benchmarks.gpu_suite.command import CASES, CORRECTNESS, NAME, SPEED
from benchmarks.gpu_suite.correctness import Check, check_model, check_ops, expect_passed
from benchmarks.models import SIZES
from benchmarks.peers import PEERS
from benchmarks.suite import measure
from benchmarks.suite.rows import Row
from tests.support import require

require("matplotlib")


def test_every_op_gives_the_numbers_of_its_reference():
    require("triton")
    impl = {"rg_lru": "triton"} if not torch.cuda.is_available() else None
    checks = check_ops("cpu", length=40, impl=impl)
    expect_passed(checks)
    assert {check.what.partition(",")[0] for check in checks} == {
        "rg_lru",
        "causal_conv1d",
        "local_attention",
        "linear_cross_entropy",
    }
    assert {check.dtype for check in checks} == {"float32", "bfloat16"}
    # Another route to the numbers than the reference's own.
    assert all(check.difference > 0 for check in checks if check.dtype == "bfloat16" and "output" not in check.what)


def test_a_wrong_op_is_named(monkeypatch: pytest.MonkeyPatch):
    from benchmarks.gpu_suite import correctness

    right = correctness.rg_lru

    def wrong(**tensors: Any) -> tuple[torch.Tensor, ...]:
        y, last = right(**tensors)
        return (y * (1.001 if "impl" not in tensors else 1.0), last)

    monkeypatch.setattr(correctness, "rg_lru", wrong)
    with pytest.raises(ValueError, match=r"device: expected the numbers of the CPU.*rg_lru, output \(float32\)"):
        expect_passed(check_ops("cpu", length=40))


def test_nan_does_not_pass():
    assert not Check("x", "float32", float("nan"), 1.0).passed


def test_the_model_gives_its_own_tokens():
    checks = check_model("cpu", tokens=4)
    assert [check.difference for check in checks] == [0.0, 0.0]


def test_the_recurrence_alone_and_who_is_missing():
    result = bandwidth.rg_lru_alone(
        "cpu", batch=1, length=40, width=16, dtype="float32", training=True, repeats=2, copied_bytes=1024
    )
    assert list(result.timings) == ["ours"] and result.bandwidth > 0
    # Forward: three in, one out; backward: one and three in, three out.
    assert result.bytes == {"ours": 11 * 40 * 16 * 4}
    assert set(result.left_out) == {"fla hgrn", "accelerated-scan"}
    assert bandwidth.peak("cpu", dtype="float32", size=16, repeats=2) > 0


def test_another_recurrence_is_refused():
    def scan(x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return x.cumsum(dim=1)

    wrong = bandwidth.Scan(scan, takes_log=False, channels_first=False)
    with pytest.raises(ValueError, match="cumsum: expected the recurrence"):
        bandwidth.expect_recurrence("cumsum", wrong, "cpu")


def test_without_a_gpu_it_says_what_is_missing(capsys: pytest.CaptureFixture[str]):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert main(["gpu"]) == 2
    assert "gpu: expected a" in capsys.readouterr().err


def test_rows_are_of_what_there_is():
    for row in (*CORRECTNESS, *SPEED):
        assert row.case in {**measure.CASES, **CASES} and row.size in SIZES and row.device == "cuda"
        assert {name for group in row.groups for name in group} <= set(PEERS)


@pytest.mark.parametrize("right", [True, False])
def test_speed_is_measured_only_of_what_is_right(tmp_path: Path, right: bool):
    def correctness(row: Row) -> dict[str, Any]:
        return command.checked("w", [Check("op", "float32", 0.0 if right else 1.0, 0.5)])

    cases = {"right": correctness, "peak": lambda row: {"work": "w", "peak": 1e12}}
    rows = [Row(f"gpu-{case}", case, "tiny", (1,)) for case in cases]
    console = Console(file=io.StringIO())
    environment = report.environment()
    for _ in range(2):
        code = command.run_gpu((rows[0],), [rows[1]], tmp_path, environment, console, again=False, cases=cases)
        assert code == (0 if right else 1)
    stored = json.loads((tmp_path / "data" / f"{NAME}.json").read_text())["rows"]
    assert list(stored) == (["gpu-right", "gpu-peak"] if right else ["gpu-right"])
    page = (tmp_path / "performance.md").read_text()
    assert f"<!-- table {NAME}/correctness -->" in page and ("| op | float32 | 0.0e+00 |" in page) == right


def test_the_rows_of_the_recurrence_have_a_floor(monkeypatch: pytest.MonkeyPatch):
    alone = bandwidth.rg_lru_alone
    monkeypatch.setattr(
        bandwidth, "rg_lru_alone", lambda *a, **k: alone(*a, **{**k, "batch": 1, "repeats": 2}, copied_bytes=1024)
    )
    found = CASES["rg-lru"](Row("r", "rg-lru", "tiny", (40,), repeats=2))
    (timings,) = found["groups"]
    assert list(timings) == ["ours", "floor"] and len(timings["floor"]) == 2
    assert timings["floor"][0] == found["bytes"]["ours"] / found["bandwidth"]
