"""The suite at its tiny size: every contestant reports, a wrong number stops its row, a killed run goes on."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.models import SIZES
from benchmarks.peers import PEERS
from benchmarks.suite import command, page, plots
from benchmarks.suite.measure import CASES
from benchmarks.suite.page import NAME, TABLES
from benchmarks.suite.results import Results, figures, ratio
from benchmarks.suite.rows import ROWS, Budget, Row
from tests.support import require

require("matplotlib")
# One of each case but training, whose step takes JAX long to compile, and memory in processes of its own.
CHOSEN = ["prefill-2560x3", "context-2k", "generation-memory", "profile-512x6"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("suite")


def _run(folder: Path, *arguments: str) -> dict[str, Any]:
    assert main(["--quick", "--output", str(folder), *arguments]) == 0
    return json.loads((folder / "data" / f"{NAME}.json").read_text())


@pytest.mark.usefixtures("in_tree_is_exact")
def test_every_contestant_has_figures(folder: Path, capsys: pytest.CaptureFixture[str]):
    require("recurrentgemma.jax.griffin")
    results = _run(folder, "--only", *CHOSEN)
    assert list(results["rows"]) == CHOSEN
    prefill, context, memory, ops = results["rows"].values()
    (rounds,) = prefill["groups"]
    assert list(rounds) == ["floor", "ours", "in-tree", "deepmind-torch", "deepmind-jax", "gemma", "gemma-3", "lfm2"]
    assert {len(seconds) for seconds in rounds.values()} <= {1, 2}
    assert prefill["left_out"] == {}
    assert prefill["entrants"]["deepmind-jax"]["difference"] < 1e-4
    assert all(context["entrants"][who]["state_bytes"] > 0 for who in ("ours", "gemma", "gemma-3", "lfm2"))
    assert memory["groups"][0]["cache, first"] == memory["groups"][0]["cache, last"]
    assert len(ops["parts"]) == 3

    pictures = {path.name for path in (folder / "images").iterdir()}
    assert pictures == {f"{NAME}_{kind}.svg" for kind in ("length", "ratios", "ops")}
    text = (folder / f"{NAME}.md").read_text()
    assert "| prefill-2560x3 | ours / floor |" in text and "DeepMind, JAX" in text and "`--quick`" in text
    assert "prefill-2560x3: " in capsys.readouterr().out


def test_the_time_of_every_row_can_be_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bounds = []

    def measure(row: Row, cases: object) -> dict[str, Any]:
        bounds.append(row.seconds)
        return {"work": "w", "unit": "s", "parts": {}}

    monkeypatch.setattr(command, "measure", measure)
    rows = ["prefill-2560x3", "prefill-512x6"]
    assert main(["--only", *rows, "--output", str(tmp_path), "--seconds", "350"]) == 0
    assert bounds == [350, 300]
    with pytest.raises(ValueError, match="seconds: expected more than 0"):
        main(["--only", *rows, "--output", str(tmp_path), "--seconds", "0"])


@pytest.mark.usefixtures("in_tree_is_exact")
def test_a_run_goes_on_where_it_stopped_and_draws_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch):
    before = json.loads((folder / "data" / f"{NAME}.json").read_text())
    pictures = {path: path.read_bytes() for path in (folder / "images").iterdir()}
    text = (folder / f"{NAME}.md").read_text()
    measured = []

    def measure(row: Row, cases: object) -> dict[str, Any]:
        measured.append(row.name)
        return {"work": "w", "unit": "s", "parts": {}}

    monkeypatch.setattr(command, "measure", measure)
    assert _run(folder, "--only", *CHOSEN) == before and measured == []
    assert {path: path.read_bytes() for path in pictures} == pictures

    assert main(["plot", str(folder)]) == 0
    assert {path: path.read_bytes() for path in pictures} == pictures and (folder / f"{NAME}.md").read_text() == text

    _run(folder, "--only", *CHOSEN, "profile-2560x3")
    assert measured == ["profile-2560x3"]
    _run(folder, "--only", "profile-2560x3", "--again")
    assert measured == ["profile-2560x3"] * 2


def test_a_row_that_fails_is_named_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    def disagree(row: Row, cases: object) -> dict[str, Any]:
        raise ValueError("prefill: they differ")

    monkeypatch.setattr(command, "measure", disagree)
    arguments = ["--quick", "--output", str(tmp_path), "--only", "prefill-2560x3", "train-2560x3"]
    assert main(arguments) == 1
    stored = json.loads((tmp_path / "data" / f"{NAME}.json").read_text())["rows"]
    assert list(stored) == ["prefill-2560x3", "train-2560x3"]
    assert stored["prefill-2560x3"]["failed"] == "ValueError: prefill: they differ"
    assert "groups" not in stored["prefill-2560x3"]
    assert "no result: prefill-2560x3, train-2560x3" in capsys.readouterr().out
    text = (tmp_path / f"{NAME}.md").read_text()
    assert "they differ" in text and "| no result |" in text
    assert main(arguments) == 1
    assert "prefill: they differ" in capsys.readouterr().out


@pytest.mark.usefixtures("in_tree_is_exact")
def test_disagreement_stops_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.agreement.LOGITS_TOLERANCE", 0.0)
    assert main(["--quick", "--output", str(tmp_path), "--only", "context-2k"]) == 1
    row = json.loads((tmp_path / "data" / f"{NAME}.json").read_text())["rows"]["context-2k"]
    assert "no timing is reported until they agree" in row["failed"] and "groups" not in row


def test_results_of_another_machine_or_of_other_options_are_refused(tmp_path: Path):
    here = {"hardware": "a", "load_average": 1.0}
    results = Results(tmp_path / "r.json", here, {"quick": True})
    results.add("row", {"work": "w"})
    again = Results(tmp_path / "r.json", {**here, "load_average": 3.0}, {"quick": True})
    assert again.rows == {"row": {"work": "w"}}
    with pytest.raises(ValueError, match=r"environment\.hardware: expected 'a', as .* got 'b'"):
        Results(tmp_path / "r.json", {"hardware": "b"}, {"quick": True})
    with pytest.raises(ValueError, match=r"options\.quick: expected True"):
        Results(tmp_path / "r.json", here, {"quick": False})


def test_quick_figures_never_reach_the_docs():
    with pytest.raises(ValueError, match="output: expected a folder together with --quick"):
        main(["--quick"])


def test_there_is_nothing_to_draw_without_results(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="expected the results of a run"):
        main(["plot", str(tmp_path)])


def test_rows_are_of_what_there_is():
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert row.case in CASES and row.size in SIZES
        assert {name for group in row.groups for name in group} <= set(PEERS)
        assert bool(row.groups) == (row.case in ("prefill", "train", "decode"))
        assert row.quick().name == row.name and row.quick().groups == row.groups


def test_ratios_are_taken_within_rounds_and_groups():
    row = {"groups": [{"floor": [1.0, 2.0], "ours": [2.0, 4.0], "x": [9.0]}, {"floor": [10.0], "ours": [30.0]}]}
    assert ratio(row, "ours", "floor").seconds == (2.0, 2.0, 3.0)
    assert ratio(row, "x", "floor").seconds == (6.0,)
    assert ratio(row, "x", "nobody") is None
    assert figures(row, "floor").seconds == (1.0, 2.0, 10.0)
    assert figures(row, "nobody") is None


def test_nothing_has_a_ratio_to_memory_that_did_not_grow():
    steps = {"groups": [{"ours": [0, 4096], "in-tree": [0, 8192]}]}
    assert ratio(steps, "ours", "in-tree") is None
    assert ratio(steps, "in-tree", "nobody") is None


def _results(**rows: dict[str, Any]) -> dict[str, Any]:
    machine = dict.fromkeys(("hardware", "cpu_capability", "cores", "threads", "torch", "transformers", "python"), "?")
    return {"environment": machine, "options": {"quick": False}, "rows": rows}


def test_what_was_measured_once_and_what_is_over_its_budget_are_marked():
    row = Row("prefill", "prefill", "tiny", (40,), budgets=(Budget("ours", 1.5), Budget("ours", 2.5)))
    found = {
        "row": dataclasses.asdict(row),
        "groups": [{"floor": [1.0, 1.0], "ours": [2.0, 2.0], "in-tree": [50.0]}],
        "once": ["in-tree"],
    }
    tables = {name: make(_results(prefill=found)) for name, make in TABLES.items() if name in ("budgets", "ratios")}
    assert "| 2 (2-2) | 1.5 | **over** |" in tables["budgets"]
    assert "| 2 (2-2) | 2.5 | met |" in tables["budgets"]
    assert "50 \\* |" in tables["ratios"]


def test_a_page_keeps_its_words_and_other_results(tmp_path: Path):
    path = tmp_path / f"{NAME}.md"
    path.write_text("Words.\n<!-- table budgets -->\nold\n<!-- end -->\n<!-- table other/ops -->\nkept\n<!-- end -->\n")
    page.write(tmp_path, NAME, _results())
    assert path.read_text() == (
        "Words.\n<!-- table budgets -->\nNot measured yet.\n<!-- end -->\n"
        "<!-- table other/ops -->\nkept\n<!-- end -->\n"
    )
    page.write(tmp_path, "gpu", _results())
    assert "<!-- table gpu/kernels -->\nNot measured yet." in path.read_text()
    path.write_text("<!-- table nonsense -->\n<!-- end -->\n<!-- table run -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match=r"table: expected one of .* got 'nonsense'"):
        page.write(tmp_path, NAME, _results(row={"row": {"case": "x"}, "load_average": 1, "wall_seconds": 1}))


def test_nothing_is_drawn_of_nothing(tmp_path: Path):
    assert plots.draw(tmp_path, NAME, _results()) == []


@pytest.mark.slow
# Said by torch of its own module, which the first compilation imports.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.usefixtures("in_tree_is_exact")
def test_the_whole_suite_runs(tmp_path: Path):
    require("recurrentgemma.jax.griffin")
    results = _run(tmp_path)
    assert list(results["rows"]) == [row.name for row in ROWS]
    for row in ROWS:
        found = results["rows"][row.name]
        measured = {name for group in found.get("groups", ()) for name in group}
        # Groups of 32 channels do not divide the tiny model's.
        assert set(found.get("left_out", {})) <= {"ours-int4"}
        assert {name for group in row.groups for name in group} <= measured | set(found.get("left_out", {}))
        # Tiny models may train without a page of memory more.
        assert found["unit"] == "bytes" or all(ratio(found, b.contestant, b.over) for b in row.budgets)
