"""docs/evidence.md holds true: its tables are those of the committed results, and its claims follow from them."""

import json

import pytest

from benchmarks.learning import models
from benchmarks.learning.command import SEEDS, SUITE
from benchmarks.learning.models import REACH
from benchmarks.learning.tasks import TASKS
from tests.support import ROOT, require

require("matplotlib")
from benchmarks.learning.report import renew  # noqa: E402

PAGE = (ROOT / "docs" / "evidence.md").read_text()
RESULTS = json.loads((ROOT / "docs" / "data" / "learning.json").read_text())


def _scores(task: str, model: str, length: int, *, test: str | None = None, measure: str = "accuracy") -> list[float]:
    """One value a seed, of the task's last test unless another is named."""
    test = list(TASKS[task].tests)[-1] if test is None else test
    found = [
        score[measure]
        for run in RESULTS["runs"]
        if (run["task"], run["model"]) == (task, model)
        for score in run["scores"]
        if (score["test"], score["length"]) == (test, length)
    ]
    assert len(found) == len(SEEDS)
    return found


def test_tables_are_those_of_the_results():
    assert renew(PAGE, RESULTS) == PAGE
    for table in ("run", "tasks", "training", *TASKS):
        assert f"<!-- table {table} -->\n|" in PAGE


def test_the_results_are_those_of_the_whole_suite():
    made = [(run["task"], run["model"], run["seed"]) for run in RESULTS["runs"]]
    assert sorted(made) == sorted((task, model, seed) for task in SUITE for model in SUITE[task] for seed in SEEDS)
    for run in RESULTS["runs"]:
        task = TASKS[run["task"]]
        assert run["learning_rate"] == task.learning_rate and run["steps"] <= task.steps
        assert [(score["test"], score["length"]) for score in run["scores"]] == [
            (test, length) for test in task.tests for length in task.test_lengths
        ]
    settings = RESULTS["settings"]
    assert (settings["window"], settings["reach"]) == (models.WINDOW, REACH)
    assert (settings["width"], settings["layers"]) == (models.WIDTH, models.LAYERS)


def test_pictures_are_there():
    for name in ("learning", "learning_controls"):
        assert f"(images/{name}.svg)" in PAGE
        assert (ROOT / "docs" / "images" / f"{name}.svg").read_text().startswith("<?xml")


MEMORY = [task for task in TASKS if task != "parity"]


@pytest.mark.parametrize("task", MEMORY)
def test_recurrent_models_learn_every_task_of_memory(task: str):
    test = next(iter(TASKS[task].tests))
    for model in ("hawk", "griffin", "wide"):
        assert min(_scores(task, model, 32, test=test)) > 0.98


def test_hawk_holds_it_far_beyond_the_training_length():
    for task in ("marker", "recall", "induction"):
        assert min(_scores(task, "hawk", 128)) > 0.99
    for task in ("marker", "recall"):
        assert min(_scores(task, "hawk", 512)) > 0.9


@pytest.mark.parametrize("task", MEMORY)
def test_attention_is_at_chance_beyond_its_reach_and_loses_longer_rows(task: str):
    for length in (64, 128, 256, 512):
        assert max(_scores(task, "local", length, measure="beyond")) < TASKS[task].chance + 0.1
    assert max(_scores(task, "wide", 512)) < TASKS[task].chance + 0.2
    wide, hawk = (
        [run["solved_at"] for run in RESULTS["runs"] if (run["task"], run["model"]) == ("recall", model)]
        for model in ("wide", "hawk")
    )
    assert 3 * max(wide) < min(hawk)


def test_the_controls_fail_as_predicted():
    chance = TASKS["marker"].chance
    for length in (32, 64, 128, 256, 512):
        assert max(_scores("marker", "hawk-cut", length)) < chance + 0.1
    assert min(_scores("marker", "hawk-segments", 32)) > 0.98
    for length in (64, 128, 256, 512):
        for model in ("hawk", "griffin", "local", "wide"):
            assert abs(sum(_scores("parity", model, length)) / len(SEEDS) - 0.5) < 0.05
    assert min(_scores("parity", "hawk-signed", 32)) > 0.98


def test_what_is_said_to_fail_fails():
    for model in ("hawk", "griffin", "local", "wide"):
        assert max(_scores("copying", model, 512)) < 0.7
    assert min(_scores("induction", "hawk", 512)) < 0.9 < max(_scores("induction", "hawk", 512))
    assert min(_scores("flip-flop", "hawk", 512)) < 0.9 < max(_scores("flip-flop", "hawk", 512))
    assert sorted(_scores("marker", "griffin", 128))[0] < 0.9 < sorted(_scores("marker", "griffin", 128))[1]
    assert max(_scores("parity", "hawk-signed", 128)) < 0.6
