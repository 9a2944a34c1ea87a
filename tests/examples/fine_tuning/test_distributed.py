"""The recipe for several processes, started as its first lines say, trains one model in both, short and on a CPU."""

import json

import pytest
import torch
from torch import distributed
from transformers import AutoModelForCausalLM, AutoTokenizer

from recurrent_gemma import demo_path
from tests.support import ROOT, require, run_python

RECIPES = ROOT / "examples" / "fine_tuning"


@pytest.mark.skipif(not distributed.is_available(), reason="this build of torch has no processes")
def test_two_processes_train_one_model(tmp_path):
    require("matplotlib")
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(RECIPES / "accelerate" / "two_cpus.yaml")]
    options = ["--steps", "2", "--block", "16", "--batch-size", "2", "--eval-rows", "8", "--learning-rate", "1e-3"]
    command = [*launch, str(RECIPES / "distributed.py"), "--output", str(tmp_path), *options]
    assert "2 processes" in run_python(*command, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"}).stdout
    evaluations = [
        entry["eval_loss"] for entry in json.loads((tmp_path / "log.json").read_text()) if "eval_loss" in entry
    ]
    assert evaluations[-1] < evaluations[0]
    assert (tmp_path / "loss.svg").read_text().startswith("<?xml")
    states = sorted(path.name for path in (tmp_path / "checkpoints" / "checkpoint-2").glob("rng_state*"))
    assert states == ["rng_state_0.pth", "rng_state_1.pth"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    before = AutoModelForCausalLM.from_pretrained(demo_path(), dtype=torch.float32)
    assert not torch.equal(model.model.embed_tokens.weight, before.model.embed_tokens.weight)
    # What training needs is not left behind for generation.
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert len(tokenizer) == model.config.vocab_size
    assert model.config.use_cache and tokenizer.padding_side == "left"


def test_gpus_are_sharded_block_by_block():
    yaml = pytest.importorskip("yaml")
    config = yaml.safe_load((RECIPES / "accelerate" / "fsdp2.yaml").read_text())
    from accelerate.commands.config.config_args import load_config_from_file

    # accelerate itself refuses keys that it does not know.
    loaded = load_config_from_file(str(RECIPES / "accelerate" / "fsdp2.yaml"))
    assert loaded.fsdp_config == config["fsdp_config"]
    assert loaded.fsdp_config["fsdp_version"] == 2
    assert "fsdp_transformer_layer_cls_to_wrap" not in loaded.fsdp_config
    assert list(AutoModelForCausalLM.from_pretrained(demo_path())._no_split_modules) == ["RecurrentGemmaDecoderLayer"]
