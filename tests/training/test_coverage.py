"""The coverage report counts every parameter once, and what it calls trained is what the optimizer gets."""

from typing import Any

import pytest

from recurrent_gemma.training import lora_config, lora_coverage
from tests.modeling.models import tiny_config, tiny_model
from tests.support import require
from tests.training.adapters import adapted

peft = require("peft")

OPTIONS: list[dict[str, Any]] = [
    {},
    {"gates": True},
    {"gates": True, "modules_to_save": ["conv_1d"], "layers_to_transform": [0, 2]},
    {"trainable_token_indices": [5, 6]},
    {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_counts_are_those_of_the_model(options: dict[str, Any], tied: bool):
    model = tiny_model(tiny_config(tie_word_embeddings=tied))
    names = {name: parameter.numel() for name, parameter in model.named_parameters()}
    if not tied:
        options = {name: value for name, value in options.items() if name != "ensure_weight_tying"}
    wrapped = adapted(lora_config(model, **options), model)
    coverage = lora_coverage(wrapped)
    prefixes = [f"model.layers.{row.block}." if row.block is not None else "" for row in coverage.rows]
    found = {prefix + row.name: row.parameters for prefix, row in zip(prefixes, coverage.rows, strict=True)}
    assert found == names and len(coverage.rows) == len(names)
    assert coverage.count() == sum(names.values())
    assert sum(map(coverage.count, ("adapted", "trained", "frozen"))) == coverage.count()
    assert coverage.adapter_parameters == sum(p.numel() for p in wrapped.parameters() if p.requires_grad)


def test_what_it_says_of_each_parameter():
    model = tiny_model()
    wrapped = adapted(lora_config(model, rank=2, gates=True, modules_to_save=["conv_1d"]), model)
    status = {(row.block, row.name): row for row in lora_coverage(wrapped).rows}
    gate = status[0, "temporal_block.rg_lru.input_gate_weight"]
    # Two factors (12, 2) for each of four blocks (12, 12).
    assert (gate.status, gate.kind, gate.parameters, gate.adapter_parameters) == ("adapted", "recurrent", 576, 192)
    assert status[0, "temporal_block.rg_lru.recurrent_param"].status == "frozen"
    convolution = status[1, "temporal_block.conv_1d.weight"]
    assert (convolution.status, convolution.adapter_parameters) == ("trained", 192)
    assert status[2, "temporal_block.q_proj.weight"].kind == "attention"
    assert status[None, "model.embed_tokens.weight"].status == "frozen"


def test_blocks_alike_share_rows_of_the_table():
    model = tiny_model()
    table = str(lora_coverage(adapted(lora_config(model, layers_to_transform=[0, 1, 2]), model))).splitlines()
    labels = [line.split("  ")[0] for line in table if line[0] not in " -"]
    assert labels == ["block", "none", "0-1 (recurrent)", "2 (attention)", "3-4 (recurrent)", "all", table[-1]]
    assert table[-1].startswith("Of the model's parameters: ") and "0.0% trained" in table[-1]
    assert len({len(line) for line in table[1:-1]}) == 1


def test_a_model_without_adapter_is_trained_whole():
    coverage = lora_coverage(tiny_model())
    assert coverage.count("trained") == coverage.count() and coverage.adapter_parameters == 0


def test_an_inactive_adapter_does_not_count():
    model = tiny_model()
    wrapped = adapted(lora_config(model, rank=2, target_modules=["q_proj"]), model)
    wrapped.add_adapter("other", lora_config(model.config, rank=4))
    wrapped.set_adapter("other")
    other = lora_coverage(wrapped)
    wrapped.set_adapter("default")
    assert lora_coverage(wrapped).adapter_parameters == 2 * 2 * 32 < other.adapter_parameters
