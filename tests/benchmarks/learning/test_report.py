"""The command writes results, pictures and tables; tables say what the results say."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.learning import command, training
from benchmarks.learning.tasks import TASKS
from tests.support import require

require("matplotlib")
from benchmarks.learning import report  # noqa: E402

PAGE = """Before.
<!-- table flip-flop -->
old
<!-- end -->
Between.
<!-- table run -->
<!-- end -->
After.
"""


def _run(path: Path, *arguments: str) -> dict[str, Any]:
    main(["learning", "--output", str(path), *arguments])
    return json.loads((path / "data" / "learning.json").read_text())


def _result(model: str, seed: int, accuracies: dict[int, float], *, task: str = "marker") -> dict[str, Any]:
    scores = [
        {"test": "", "length": length, "accuracy": accuracy, "beyond": None if length == 32 else accuracy / 2}
        for length, accuracy in accuracies.items()
    ]
    return {
        "task": task,
        "model": model,
        "seed": seed,
        "parameters": 12345,
        "learning_rate": 1e-3,
        "steps": 100,
        "solved_at": None if seed else 50,
        "cpu_seconds": 9.6,
        "scores": scores,
    }


@pytest.fixture
def results() -> dict[str, Any]:
    runs = [_result("hawk", 0, {32: 1.0, 64: 0.5}), _result("hawk", 1, {32: 0.5, 64: 0.25})]
    return {"runs": [*runs, _result("hawk-cut", 0, {32: 0.125})]}


def test_a_part_of_the_suite_is_run_written_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(training, "TEST_ROWS", 8)
    # In this process, which has the patch and the imports.
    monkeypatch.setattr(command, "_run_all", lambda jobs, processes: map(command.run_job, jobs))
    (tmp_path / "evidence.md").write_text(PAGE)
    parts = ["--tasks", "flip-flop", "--models", "hawk", "local", "--seeds", "1", "--steps", "2"]
    found = _run(tmp_path, *parts)
    assert [(run["task"], run["model"], run["seed"], run["steps"]) for run in found["runs"]] == [
        ("flip-flop", "hawk", 1, 2),
        ("flip-flop", "local", 1, 2),
    ]
    assert found["options"]["tasks"] == ["flip-flop"] and found["environment"]["torch"]
    assert all(len(run["scores"]) == 10 for run in found["runs"])
    picture = (tmp_path / "images" / "learning.svg").read_text()
    assert "<svg" in picture
    page = (tmp_path / "evidence.md").read_text()
    assert page.startswith("Before.\n<!-- table flip-flop -->\n| | 32 | 64 |") and page.endswith(
        "<!-- end -->\nAfter.\n"
    )
    assert "old" not in page and "| Hawk; ignore 98 % |" in page
    assert f"{found['runs'][1]['scores'][4]['accuracy']:.3f}" in page
    printed = capsys.readouterr().out
    assert "2/2 flip-flop local seed 1" in printed and "learning.svg" in printed

    # Once more from the results alone: the same files.
    (tmp_path / "images" / "learning.svg").unlink()
    main(["learning", "--output", str(tmp_path), "--redraw"])
    assert (tmp_path / "images" / "learning.svg").read_text() == picture
    assert (tmp_path / "evidence.md").read_text() == page


def test_cells_are_mean_least_and_most(results: dict[str, Any]):
    page = report.renew("<!-- table marker -->\n<!-- end -->\n<!-- table marker/beyond -->\n<!-- end -->", results)
    assert "| Hawk | 0.750 (0.500-1.000) | 0.375 (0.250-0.500) |  |  |  |" in page
    assert "| Hawk, gradient cut between segments | 0.125 (0.125-0.125) |  |  |  |  |" in page
    assert "| Hawk |  | 0.188 (0.125-0.250) |  |  |  |" in page


def test_the_table_of_training(results: dict[str, Any]):
    page = report.renew("<!-- table training -->\n<!-- end -->", results)
    assert "| last marker's value | Hawk | 12,345 | 50, never | 100, 100 | 10, 10 |" in page


def test_every_failure_is_listed():
    lengths = TASKS["marker"].test_lengths
    kept, lost, never = (
        _result("hawk", seed, dict.fromkeys(lengths, last) | {32: first})
        for seed, (first, last) in enumerate([(1.0, 0.9), (1.0, 0.89), (0.5, 1.0)])
    )
    page = report.renew("<!-- table failures -->\n<!-- end -->", {"runs": [kept, lost, never]})
    assert page.splitlines()[3:-1] == [
        "| last marker's value | Hawk | 1 | 1.000 | 0.890 | learned it, and does not hold it |",
        "| last marker's value | Hawk | 2 | 0.500 | 1.000 | did not learn it |",
    ]


def test_unknown_tables_are_refused(results: dict[str, Any]):
    for name in ("markers", "marker/below"):
        with pytest.raises(ValueError, match=f"^table: expected .*, got '{name}'"):
            report.renew(f"<!-- table {name} -->\n<!-- end -->", results)


def test_controls_are_drawn_beside_hawk_alone(results: dict[str, Any], tmp_path: Path):
    results["runs"].append(_result("local", 0, {32: 0.5}))
    results["runs"].append(_result("local", 0, {32: 0.5}, task="induction"))
    assert [path.name for path in report.write(tmp_path, results)] == ["learning.svg", "learning_controls.svg"]
    del results["runs"][2]
    assert [path.name for path in report.write(tmp_path, results)] == ["learning.svg"]


def test_a_part_needs_a_folder_of_its_own():
    with pytest.raises(ValueError, match=r"^output: expected a folder together with tasks, steps"):
        main(["learning", "--tasks", "marker", "--steps", "1"])


def test_the_suite_holds_every_comparison_and_its_controls():
    options = command.argparse.Namespace(
        tasks=None, models=None, seeds=None, steps=None, learning_rates=None, device="cpu"
    )
    jobs = list(command.planned_jobs(options))
    assert len(jobs) == len(set(jobs)) == 3 * (4 * len(TASKS) + 3)
    assert {job[2] for job in jobs} == {0, 1, 2}
    assert ("parity", "hawk-signed", 0, None, None, "cpu") in jobs
