"""Training learns in seconds what is easy, is the same for the same seed, and stops when it should."""

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from benchmarks.learning import training
from benchmarks.learning.models import MODELS
from benchmarks.learning.tasks import TASKS
from benchmarks.learning.training import run


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "TEST_ROWS", 64)


EASY = replace(TASKS["flip-flop"], test_lengths=(16, 64))


def _without_times(found: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(found).items() if "seconds" not in name}


def test_hawk_learns_the_easiest_task_in_seconds():
    found = run(EASY, MODELS["hawk"], seed=0, steps=120)
    assert found.task == "flip-flop" and found.model == "hawk" and found.seed == 0
    assert [(score.test, score.length) for score in found.scores] == [
        ("ignore 80 %", 16),
        ("ignore 80 %", 64),
        ("ignore 98 %", 16),
        ("ignore 98 %", 64),
    ]
    assert found.scores[0].accuracy > 0.9
    for score in found.scores:
        assert 0 <= score.accuracy <= 1 and score.answers[0] >= score.answers[1]
        assert (score.beyond is None) == (score.answers[1] == 0) == (score.length == 16)


@pytest.mark.parametrize("model", ["griffin", "hawk-cut"])
def test_a_seed_gives_the_same_run(model: str):
    first, same, other = (_without_times(run(EASY, MODELS[model], seed=seed, steps=3)) for seed in (1, 1, 2))
    assert first == same
    assert first["loss"] != other["loss"]


def test_steps_end_at_the_budget_or_after_the_cooldown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "VALIDATE_EVERY", 5)
    easy = replace(EASY, test_lengths=(16,))
    found = run(easy, MODELS["hawk"], seed=0, steps=12)
    assert (found.steps, found.solved_at) == (12, None)
    assert [step for step, _ in found.validation] == [5, 10, 12]
    monkeypatch.setattr(training, "SOLVED", 0.0)
    found = run(easy, MODELS["hawk"], seed=0, steps=100)
    assert (found.steps, found.solved_at) == (25, 5)


def test_the_learning_rate_rises_stays_and_falls(monkeypatch: pytest.MonkeyPatch):
    rates = []

    class Recorded(torch.optim.AdamW):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            assert self.param_groups[1]["lr"] == rates[-1]
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Recorded)
    monkeypatch.setattr(training, "WARMUP_STEPS", 4)
    run(replace(EASY, train_length=8, test_lengths=(8,)), MODELS["hawk"], seed=0, steps=20, learning_rate=1.0)
    assert rates == [0.25, 0.5, 0.75, *[1.0] * 14, 0.75, 0.5, 0.25]
