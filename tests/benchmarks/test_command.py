"""``python -m benchmarks``: each case runs at a tiny size and reports; what it measures is not judged here."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import field
from benchmarks.__main__ import main
from tests.support import require, run_warm

SPEED_CASES = {
    "prefill": ["--length", "40"],
    "train": ["--length", "40"],
    "decode": ["--tokens", "3"],
}


def _run(path: Path, *arguments: str) -> dict[str, Any]:
    main([*arguments, "--size", "tiny", "--json", str(path)])
    return json.loads(path.read_text())


@pytest.mark.usefixtures("in_tree_is_exact")
@pytest.mark.parametrize("case", SPEED_CASES)
def test_speed_cases(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    report = _run(tmp_path / "report.json", case, *SPEED_CASES[case], "--repeats", "2")
    assert report["case"] == case
    assert report["options"]["size"] == "tiny"
    timings = report["result"]["timings"]
    assert list(timings) == ["floor", "ours", "in-tree"]
    assert all(len(timing["seconds"]) == 2 for timing in timings.values())
    assert all(second > 0 for timing in timings.values() for second in timing["seconds"])
    assert all(0 < difference < 1e-3 for difference in report["result"]["agreement"].values())

    summary = report["summary"]
    assert summary["floor"]["ratio_to_floor"] == summary["ours"]["ratio_to_ours"] == 1.0
    # The median of two ratios is their mean.
    first, second = (a / b for a, b in zip(timings["in-tree"]["seconds"], timings["ours"]["seconds"], strict=True))
    assert math.isclose(summary["in-tree"]["ratio_to_ours"], (first + second) / 2)

    printed = capsys.readouterr().out
    assert f"{case} tiny" in printed
    assert "in-tree" in printed


@pytest.mark.usefixtures("in_tree_is_exact")
def test_peers_stand_beside_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    report = _run(
        tmp_path / "r.json", "prefill", "--length", "20", "--repeats", "1", "--peers", "gemma", "ours-compiled"
    )
    assert list(report["result"]["timings"]) == ["floor", "ours", "gemma"]
    assert set(report["result"]["entrants"]) == {"ours", "gemma"}
    assert "decode only" in report["result"]["left_out"]["ours-compiled"]
    printed = capsys.readouterr().out
    assert "gemma: 37,600 parameters" in printed and "ours-compiled: left out" in printed


@pytest.mark.usefixtures("in_tree_is_exact")
def test_quantized_contestants_decode(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    require("torchao")
    options = ["--tokens", "3", "--repeats", "1", "--peers", "ours-int8", "ours-int4"]
    report = _run(tmp_path / "report.json", "decode", *options)
    assert list(report["result"]["timings"]) == ["floor", "ours", "ours-int8"]
    assert "dividable by 16" in report["result"]["left_out"]["ours-int4"]
    assert "linear layers in int8" in capsys.readouterr().out


def test_profile_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    parts = _run(tmp_path / "report.json", "profile", "--length", "40", "--tokens", "3")["result"]["parts"]
    assert list(parts) == ["prefill, 40 tokens", "decoding, 3 tokens", "training step, 40 tokens"]
    assert "matrix products" in capsys.readouterr().out


def test_memory_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    report = _run(tmp_path / "report.json", "memory", "--tokens", "60", "--every", "20")
    assert [sample["tokens"] for sample in report["result"]["samples"]] == [20, 40, 60]
    assert report["result"]["cache_slope"] == 0
    assert "slope, bytes per token: cache +0" in capsys.readouterr().out


def test_prefix_cache_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--system", "60", "--tokens", "4", "--requests", "12", "--repeats", "2"]
    result = _run(tmp_path / "report.json", "prefix-cache", *arguments)["result"]
    assert list(result["timings"]) == ["cold", "warm"]
    assert all(second > 0 for timing in result["timings"].values() for second in timing["seconds"])
    for rates in result["hit_rates"]:
        assert 0 <= rates["whole_caches"] <= rates["lru"] < 1 and 0 <= rates["flops_per_byte"] < 1
    printed = capsys.readouterr().out
    assert "cold / warm" in printed and "token hit rate on 12 branching requests" in printed


def test_shared_contexts_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    require("lm_eval")
    arguments = ["--shots", "40", "--question", "8", "--questions", "3", "--subjects", "2", "--repeats", "2"]
    letters, endings = _run(tmp_path / "report.json", "shared-contexts", *arguments)["result"]["works"]
    assert letters["requests"] == endings["requests"] == 2 * 3 * 4
    assert letters["tokens_read"] == {"shared": 2 * (40 + 3 * 8), "plain": 2 * 3 * 48}
    # A question of 8 tokens is too short to keep a state for.
    assert endings["tokens_read"] == {"shared": 2 * (40 + 12 * (8 + 19)), "plain": 2 * 12 * (48 + 19)}
    assert all(0 <= work["difference"] < 1e-4 for work in (letters, endings))
    assert "plain / shared" in capsys.readouterr().out


def test_the_report_names_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    report = _run(tmp_path / "report.json", "memory", "--tokens", "4", "--every", "2", "--threads", "3")
    machine = report["environment"]
    assert threads == [3]
    assert machine["allocator_settings"]["MALLOC_ARENA_MAX"] == "1"
    assert machine["torch"] == torch.__version__
    assert machine["hardware"]
    assert machine["threads"] == torch.get_num_threads()


@pytest.mark.parametrize("case", SPEED_CASES)
def test_nothing_is_reported_without_agreement(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    def disagree(pair):
        raise ValueError("prefill: they differ")

    monkeypatch.setattr(field, "check_agreement", disagree)
    with pytest.raises(ValueError, match="they differ"):
        _run(tmp_path / "report.json", case, *SPEED_CASES[case])
    assert not (tmp_path / "report.json").exists()
    assert capsys.readouterr().out == ""


WRONG = (
    ["prefill", "--repeats", "0"],
    ["memory", "--size", "huge"],
    ["train", "--peers", "nobody"],
    ["--only", "nothing"],
)


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_arguments_end_with_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: python -m benchmarks" in capsys.readouterr().err


def test_the_package_runs_as_a_module(tmp_path: Path):
    arguments = ["memory", "--size", "tiny", "--tokens", "4", "--every", "2", "--threads", "1"]
    done = run_warm("-W", "error", "-m", "benchmarks", *arguments, cwd=tmp_path)
    assert "memory of generation: random weights, size tiny" in done.stdout
