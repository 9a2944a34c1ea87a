"""Two processes, replicated (DDP) or sharded (FSDP2), train as one process does."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from recurrent_gemma.modeling import RecurrentGemmaForCausalLM
from tests.modeling.models import tiny_config, tiny_model
from tests.support import ROOT, run_python
from tests.tolerances import (
    ROWS_EQUAL_SOLO_GRADIENTS,
    ROWS_EQUAL_SOLO_LOGITS,
    assert_close,
    bf16_loss_tolerance,
    logits_tolerance,
)
from tests.training import distributed_run
from tests.training.trainers import losses, row_logits, rows, token_losses

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="this build of torch has no gloo"
)

FSDP2 = ["fsdp", "fsdp_untied", "fsdp_checkpointing", "fsdp_gradient_checkpointing"]
RUNS = ["plain", *FSDP2, "fsdp_bf16", "sharded", "sharded+resumed"]
LAYERS = [f"model.layers.{index}" for index in range(5)]
# A mean loss whose logits, of up to 30, differ as those of two routes may.
LOSS = logits_tolerance(2 * ROWS_EQUAL_SOLO_LOGITS, torch.tensor(30.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What two processes wrote; one launch for all tests, since starting them takes longest."""
    folder = tmp_path_factory.mktemp("two")
    script = str(ROOT / "tests" / "training" / "distributed_run.py")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run_python(*launch, script, str(folder), *RUNS, cwd=folder, env={"OMP_NUM_THREADS": "1"})
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[bool, tuple[list[float], float, dict[str, torch.Tensor]]]:
    """Losses, final loss of held-out rows and weights of one process, with tied embeddings and without."""
    results = {}
    for tied in (True, False):
        run = distributed_run.make("plain" if tied else "plain_untied", tmp_path_factory.mktemp("one"))
        run.train()
        weights = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
        results[tied] = losses(run), run.evaluate()["eval_loss"], weights
    return results


def report(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name / "report.json").read_text())


def assert_weights_equal(model: torch.nn.Module, expected: dict[str, torch.Tensor], tied: bool) -> None:
    """Weights after the same steps, from the same start; of what the steps changed, as much as of a gradient."""
    start = dict(tiny_model(tiny_config(tie_word_embeddings=tied)).named_parameters())
    actual = dict(model.named_parameters())
    assert actual.keys() == expected.keys()
    for name, weight in expected.items():
        change = (weight - start[name]).abs().max().item()
        assert change > 0, name
        rounding = distributed_run.STEPS * torch.finfo(torch.float32).eps * weight.abs().max().item()
        assert_close(actual[name], weight, ROWS_EQUAL_SOLO_GRADIENTS * change + rounding, name)


def test_one_process_trains_on_the_labels_of_each_step(alone):
    # What all others are compared with. The first step's loss, by hand.
    expected = token_losses(tiny_model(), rows(32)[: distributed_run.BATCH]).mean()
    assert_close(torch.tensor(alone[True][0][0]), expected, LOSS, "loss")


@pytest.mark.parametrize("name", ["plain", *FSDP2])
def test_two_processes_equal_one(name, folder, alone):
    found = report(folder, name)
    tied = "untied" not in name
    expected_losses, expected_evaluation, expected = alone[tied]
    assert_close(torch.tensor(found["losses"]), torch.tensor(expected_losses), LOSS, "losses")
    assert_close(torch.tensor(found["eval_loss"]), torch.tensor(expected_evaluation), LOSS, "held-out loss")
    # The whole model, as one process saved it, loads with no further step.
    loaded = RecurrentGemmaForCausalLM.from_pretrained(folder / name / "model")
    assert_weights_equal(loaded, expected, tied)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied


def test_plain_is_ddp(folder):
    found = report(folder, "plain")
    assert found["wrapper"] == "DistributedDataParallel"
    assert found["units"] == []


@pytest.mark.parametrize("name", [*FSDP2, "fsdp_bf16", "sharded"])
def test_every_block_is_sharded_by_itself(name, folder):
    found = report(folder, name)
    # FSDP2's own checkpointing puts a wrapper around a block, and both are units.
    names = sorted({unit.replace("._checkpoint_wrapped_module", "") for unit in found["units"]})
    assert [unit for unit in names if unit.startswith("model.layers.")] == LAYERS
    assert found["tied"] == ("untied" not in name)
    # The head, a unit as well, gives the loss and never makes all logits.
    assert ["loss", "torch.float32"] in found["dtypes"]


def test_mixed_precision_leaves_states_and_angles_in_fp32(folder, alone):
    found = report(folder, "fsdp_bf16")
    assert found["dtypes"] == [["angles", "torch.float32"], ["loss", "torch.float32"], ["state", "torch.float32"]]
    # By way of a cache the state leaves one block's call and enters the next.
    assert found["state"] == ["torch.float32"]
    tokens = token_losses(tiny_model(), rows(4)).numel()
    # FSDP2 hands the loss on in bf16 as well.
    bar = bf16_loss_tolerance(row_logits(tiny_model(), rows(1)[0]), tokens, layers=5)
    bar += torch.finfo(torch.bfloat16).eps * max(alone[True][0])
    assert_close(torch.tensor(found["losses"]), torch.tensor(alone[True][0]), bar, "losses")
    weights = load_file(folder / "fsdp_bf16" / "model" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_sharded_checkpoints_go_on_bit_for_bit(folder):
    shards = sorted(path.name for path in (folder / "sharded" / "checkpoint-2" / "pytorch_model_fsdp_0").iterdir())
    assert shards == [".metadata", "__0_0.distcp", "__1_0.distcp"]
    assert report(folder, "sharded+resumed")["losses"] == report(folder, "sharded")["losses"]
    whole, resumed = (
        load_file(folder / name / "model" / "model.safetensors") for name in ("sharded", "sharded+resumed")
    )
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())


def test_shards_merge_into_a_model_that_loads(folder, tmp_path):
    from accelerate.utils import merge_fsdp_weights

    merge_fsdp_weights(str(folder / "sharded" / "checkpoint-4" / "pytorch_model_fsdp_0"), str(tmp_path))
    shutil.copy(folder / "sharded" / "model" / "config.json", tmp_path)
    merged = RecurrentGemmaForCausalLM.from_pretrained(tmp_path)
    expected = RecurrentGemmaForCausalLM.from_pretrained(folder / "sharded" / "model")
    assert all(torch.equal(a, b) for a, b in zip(merged.parameters(), expected.parameters(), strict=True))
