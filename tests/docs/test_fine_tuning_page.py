"""docs/fine_tuning.md holds true: it names every recipe, its command runs, its figures are computed or measured."""

import re
from pathlib import Path

import torch

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM
from recurrent_gemma.training import lora_config
from tests.support import ROOT, code_blocks, require, run_python

PAGE = (ROOT / "docs" / "fine_tuning.md").read_text()
TEXT = " ".join(PAGE.split())
# What recipes share.
NO_RECIPES = {"recipe.py", "adapters.py", "plain_text.py"}


def test_every_recipe_is_named():
    named = set(re.findall(r"\(\.\./examples/fine_tuning/(\w+\.py)\)", PAGE))
    assert named == {path.name for path in (ROOT / "examples" / "fine_tuning").glob("*.py")} - NO_RECIPES


def test_the_command_runs(tmp_path: Path):
    (command,) = code_blocks(PAGE, "bash")
    python, script, *options = command.split()
    assert python == "python"
    assert "--model" in run_python(str(ROOT / script), *options, cwd=tmp_path).stdout


def test_memory():
    peft = require("peft")
    with torch.device("meta"):
        model = RecurrentGemmaForCausalLM(RecurrentGemmaConfig.from_preset("recurrentgemma-2b"))
        whole = model.num_parameters()
        adapted = peft.get_peft_model(model, lora_config(model, rank=16))
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert f"16 bytes a parameter in fp32: {16 * whole / 1e9:.1f} GB for RecurrentGemma 2B" in TEXT
    assert f"rank 16 trains {trained / 1e6:.1f} million parameters of 2B, {100 * trained / whole:.1f} %" in TEXT


def test_what_was_measured_stands_where_it_was():
    trainer = " ".join((ROOT / "docs" / "trainer.md").read_text().split())
    for figure in ("11.6 GB beyond weights and gradients", "4.5 GB with gradient checkpointing", "an NVIDIA H200"):
        assert figure in TEXT and figure in trainer
