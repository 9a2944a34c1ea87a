"""The memory of a training step: the same step by every implementation, and logits that only in-tree holds."""

import json

import pytest
import torch
from rich.console import Console

from benchmarks import report, train_memory
from benchmarks.models import SIZES, Size


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch, capsys):
    # As in a process of its own, but for the resident memory that this one keeps.
    def run(implementation, size, length, device, dtype):
        train_memory.measure_in_this_process(implementation, size, str(length), device, dtype)
        loss, peak = json.loads(capsys.readouterr().out.splitlines()[-1])
        return train_memory.StepMemory(implementation, length, loss, peak)

    monkeypatch.setattr(train_memory, "_measured", run)


def test_every_implementation_does_the_same_step():
    result = train_memory.train_memory("tiny", lengths=[24, 40])
    assert [(step.implementation, step.length) for step in result.steps] == [
        (name, length) for length in (24, 40) for name in ("ours", "ours, checkpointed", "in-tree")
    ]
    assert result.logits_bytes == 4 * 40 * SIZES["tiny"].vocab_size
    console = Console(record=True, width=120)
    report.show(console, "train-memory", "tiny", report.environment(), result)
    assert "ours, checkpointed" in console.export_text()
    assert report.as_dict("train-memory", {}, {}, result)["result"]["steps"][0]["length"] == 24


def test_another_loss_is_no_result(monkeypatch):
    monkeypatch.setitem(train_memory.BUILDERS, "in-tree", lambda size: train_memory.build_in_tree(size, seed=1))
    with pytest.raises(ValueError, match="loss: expected the same of every implementation"):
        train_memory.train_memory("tiny", lengths=[24])


def test_logits_are_what_in_tree_holds_beyond_ours(monkeypatch):
    # Wide in words, so that they stand out: 40 MB of logits.
    monkeypatch.setitem(SIZES, "wordy", Size(32, 1, 4, attention_window_size=16, vocab_size=40_000))
    steps = train_memory.train_memory("wordy", lengths=[256]).steps
    peaks = {step.implementation: step.peak_bytes for step in steps}
    assert peaks["in-tree"] - peaks["ours"] > 256 * 40_000 * torch.float32.itemsize
