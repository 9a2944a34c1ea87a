"""A run that was killed goes on, in a new process, as if nothing had happened."""

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerState

from tests.support import ROOT, run_warm
from tests.training import resumed_run
from tests.training.trainers import losses

SCRIPT = str(ROOT / "tests" / "training" / "resumed_run.py")


def steps(folder: Path) -> dict[int, tuple[float, float, float]]:
    """Loss, gradient norm and learning rate of each step in a checkpoint's log."""
    log = TrainerState.load_from_json(str(folder / "trainer_state.json")).log_history
    return {
        entry["step"]: (entry["loss"], entry["grad_norm"], entry["learning_rate"]) for entry in log if "loss" in entry
    }


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that cannot be caught")
def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    whole = resumed_run.run(tmp_path / "whole")
    folder = tmp_path / "killed"
    # Warm interpreters have as many threads as this process: their number decides the order of sums.
    run_warm(SCRIPT, str(folder), "--kill-at", "6", cwd=tmp_path, code=-signal.SIGKILL)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]

    run_warm(SCRIPT, str(folder), "--resume", cwd=tmp_path)
    ours, expected = (steps(path / "checkpoint-10") for path in (folder, tmp_path / "whole"))
    assert list(ours) == list(range(1, 11))
    assert ours == expected
    assert len({loss for loss, _, _ in ours.values()}) == 10
    assert [loss for loss, _, _ in expected.values()] == losses(whole)
    for name, weight in load_file(folder / "checkpoint-10" / "model.safetensors").items():
        assert torch.equal(weight, whole.model.get_parameter(name)), name
    states = [torch.load(path / "checkpoint-10" / "optimizer.pt") for path in (folder, tmp_path / "whole")]
    moments = [
        [entry[key] for entry in state["state"].values() for key in ("exp_avg", "exp_avg_sq")] for state in states
    ]
    assert len(moments[0]) > 100
    assert all(torch.equal(a, b) for a, b in zip(*moments, strict=True))


def test_resuming_without_a_checkpoint_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="No valid checkpoint"):
        resumed_run.run(tmp_path / "empty", resume=True)
