"""LoRA on this family: merged equals unmerged, disabled the base, saved what is loaded, here and in in-tree's class."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import recurrent_gemma
from recurrent_gemma.modeling import RecurrentGemmaCache, RecurrentGemmaForCausalLM, RecurrentGemmaModel
from recurrent_gemma.training import check_adapter, lora_config
from tests.modeling.models import CONFIGS, tiny_config, tiny_model
from tests.modeling.test_interchange import in_tree_model, skip_if_transformers_rotates_wrongly
from tests.support import require, run_python
from tests.tolerances import (
    ROWS_EQUAL_SOLO_GRADIENTS,
    ROWS_EQUAL_SOLO_LOGITS,
    SPLIT_EQUALS_WHOLE_LOGITS,
    assert_close,
    assert_close_by_max,
    bf16_model_tolerance,
    logits_tolerance,
    relative_root_mean_square_error,
)
from tests.training.adapters import adapted, generated, logits_of, some_ids

peft = require("peft")

# With and without the gates, which PEFT reaches in another way than linear layers.
GATES = pytest.mark.parametrize("gates", [False, True], ids=["linear", "gates"])


def trained_names(model: torch.nn.Module) -> list[str]:
    return sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)


@pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS)
def test_the_default_is_every_linear_layer_but_the_head(fields: dict[str, Any]):
    config = tiny_config(**fields)
    every = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    ours = lora_config(tiny_model(config), rank=4)
    assert trained_names(adapted(ours, tiny_model(config))) == trained_names(adapted(every, tiny_model(config)))


def test_fields_and_where_they_come_from():
    model = tiny_model()
    adapter = lora_config(model, rank=4)
    assert (adapter.r, adapter.lora_alpha, adapter.task_type) == (4, 8, "CAUSAL_LM")
    assert lora_config(model.config).target_modules == adapter.target_modules
    assert lora_config(RecurrentGemmaModel(model.config)).task_type == "FEATURE_EXTRACTION"
    changed = lora_config(model, lora_alpha=3, target_modules=["linear_x"], use_rslora=True)
    assert (changed.lora_alpha, changed.target_modules, changed.use_rslora) == (3, {"linear_x"}, True)
    with pytest.raises(TypeError, match="rnak"):
        lora_config(model, rnak=4)


def test_gates_are_adapted_block_by_block_of_each_gate():
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = adapted(lora_config(model, rank=2, gates=True, target_modules=[]), model).merge_and_unload()
    changed = {name: after - before[name] for name, after in merged.state_dict().items()}
    changed = {name: delta for name, delta in changed.items() if delta.any()}
    assert len(changed) == 2 * 4 and all(name.endswith("gate_weight") for name in changed)
    for delta in changed.values():
        # Each of the four diagonal blocks (12, 12) has an update of rank 2 of its own.
        assert torch.linalg.matrix_rank(delta, rtol=1e-4).tolist() == [2] * 4


def test_gates_of_some_layers():
    model = tiny_model()
    wrapped = adapted(lora_config(model, gates=True, layers_to_transform=[1, 2]), model)
    assert {name.split("layers.")[1].split(".")[0] for name in trained_names(wrapped)} == {"1", "2"}
    assert any("rg_lru" in name for name in trained_names(wrapped))
    with pytest.raises(ValueError, match="gates: expected False in a model, or in layers_to_transform, without"):
        lora_config(model, gates=True, layers_to_transform=2)
    with pytest.raises(ValueError, match="gates: expected False together with target_parameters"):
        lora_config(model, gates=True, target_parameters=[])


@GATES
@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": False}, {"num_attention_heads": 1, "lru_width": 24}])
def test_merged_equals_unmerged(gates: bool, fields: dict[str, Any]):
    model = tiny_model(tiny_config(**fields))
    ids = some_ids(model)
    base = logits_of(model, ids)
    wrapped = adapted(lora_config(model, rank=4, gates=gates), model)
    expected = logits_of(wrapped, ids)
    assert (expected - base).abs().max() > 0.5
    tolerance = logits_tolerance(ROWS_EQUAL_SOLO_LOGITS, expected)
    merged = wrapped.merge_and_unload()
    assert type(merged) is RecurrentGemmaForCausalLM
    assert_close(logits_of(merged, ids), expected, tolerance, "merged")


@GATES
def test_disabled_is_the_base_model(gates: bool):
    model = tiny_model()
    ids = some_ids(model)
    base = logits_of(model, ids)
    wrapped = adapted(lora_config(model, gates=gates, modules_to_save=["conv_1d"]), model)
    with wrapped.disable_adapter():
        assert torch.equal(logits_of(wrapped, ids), base)
    assert not torch.equal(logits_of(wrapped, ids), base)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gates": True},
        {"modules_to_save": ["conv_1d", "rg_lru"]},
        {"bias": "all"},
        {"trainable_token_indices": [5, 6]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ],
    ids=["linear", "gates", "conv and RG-LRU", "biases", "tokens", "embeddings"],
)
def test_saved_and_loaded_bit_for_bit(options: dict[str, Any], tmp_path: Path):
    tiny_model().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    wrapped = adapted(lora_config(model, **options), model)
    ids = some_ids(model)
    expected = logits_of(wrapped, ids)
    wrapped.save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert torch.equal(logits_of(peft.PeftModel.from_pretrained(base, tmp_path / "adapter"), ids), expected)
    for cls in (peft.AutoPeftModelForCausalLM, AutoModelForCausalLM, RecurrentGemmaForCausalLM):
        assert torch.equal(logits_of(cls.from_pretrained(tmp_path / "adapter"), ids), expected), cls


def test_a_part_of_an_adapter_does_not_load(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    tiny_model().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted(lora_config(model, trainable_token_indices=[5]), model).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    del weights[next(name for name in weights if "embed_tokens" in name)]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"missing: model\.embed_tokens\.token_adapter"):
        RecurrentGemmaForCausalLM.from_pretrained(tmp_path / "adapter")


@GATES
def test_the_state_goes_on_under_an_adapter(gates: bool):
    model = tiny_model()
    wrapped = adapted(lora_config(model, gates=gates), model)
    ids = some_ids(model)
    whole = logits_of(wrapped, ids)
    cache = RecurrentGemmaCache(model.config)
    with torch.no_grad():
        parts = [wrapped(input_ids=part, past_key_values=cache).logits for part in ids.split((9, 1, 10), dim=1)]
    tolerance = logits_tolerance(SPLIT_EQUALS_WHOLE_LOGITS, whole)
    assert_close(torch.cat(parts, dim=1), whole, tolerance, "split against whole")
    assert torch.equal(generated(wrapped, ids), generated(wrapped, ids, use_cache=False))


@GATES
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_changes_no_gradient(gates: bool, use_reentrant: bool):
    model = tiny_model()
    wrapped = adapted(lora_config(model, gates=gates), model).train()
    ids = some_ids(model)

    def gradients() -> dict[str, torch.Tensor]:
        wrapped.zero_grad()
        wrapped(input_ids=ids, labels=ids).loss.backward()
        return {name: p.grad for name, p in wrapped.named_parameters() if p.requires_grad}

    expected = gradients()
    assert all(gradient.any() for gradient in expected.values())
    wrapped.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    for name, gradient in gradients().items():
        assert_close_by_max(gradient, expected[name], ROWS_EQUAL_SOLO_GRADIENTS, name)


@GATES
def test_packed_rows_train_as_separate_ones(gates: bool):
    model = tiny_model()
    wrapped = adapted(lora_config(model, gates=gates), model)
    documents = [some_ids(model, 1, length) for length in (9, 14)]
    total = sum(ids.shape[1] - 1 for ids in documents)
    for ids in documents:
        wrapped(input_ids=ids, labels=ids, num_items_in_batch=total).loss.backward()
    expected = {name: p.grad.clone() for name, p in wrapped.named_parameters() if p.requires_grad}
    wrapped.zero_grad()
    positions = torch.cat([torch.arange(ids.shape[1]) for ids in documents])[None]
    ids = torch.cat(documents, dim=1)
    labels = ids.masked_fill(positions == 0, -100)
    wrapped(input_ids=ids, labels=labels, position_ids=positions, num_items_in_batch=total).loss.backward()
    for name, gradient in expected.items():
        assert_close_by_max(wrapped.get_parameter(name).grad, gradient, ROWS_EQUAL_SOLO_GRADIENTS, name)


@GATES
@pytest.mark.parametrize("trained_on", ["ours", "in-tree"])
def test_adapters_go_to_transformers_class_and_back(trained_on: str, gates: bool, tmp_path: Path):
    ours = tiny_model()
    skip_if_transformers_rotates_wrongly(ours.config)
    # One key more: Transformers' attention sees one less than the source's.
    in_tree = in_tree_model(ours.config, attention_window_size=ours.config.attention_window_size + 1)
    in_tree.load_state_dict(ours.state_dict())
    first, second = (ours, in_tree) if trained_on == "ours" else (in_tree, ours)
    ids = some_ids(ours, length=30)
    base = logits_of(ours, ids)
    wrapped = adapted(lora_config(first, rank=4, gates=gates), first)
    wrapped.save_pretrained(tmp_path)
    expected = logits_of(wrapped, ids)
    loaded = peft.PeftModel.from_pretrained(second, tmp_path).eval()
    assert (expected - base).abs().max() > 0.5
    tolerance = logits_tolerance(ROWS_EQUAL_SOLO_LOGITS, expected)
    assert_close(logits_of(loaded, ids), expected, tolerance, "adapter of the other class")


@GATES
def test_adapters_on_a_model_in_half_precision(gates: bool):
    model, half = tiny_model(), tiny_model().to(torch.bfloat16)
    ids = some_ids(model)
    expected = logits_of(adapted(lora_config(model, rank=4, gates=gates), model), ids)
    wrapped = adapted(lora_config(half, rank=4, gates=gates), half)
    # PEFT keeps the adapter in fp32 for the optimizer.
    assert {p.dtype for p in wrapped.parameters() if p.requires_grad} == {torch.float32}
    actual = logits_of(wrapped, ids)
    assert actual.dtype == torch.bfloat16
    layers = model.config.num_hidden_layers
    assert relative_root_mean_square_error(actual, expected) < bf16_model_tolerance(layers)


PEFT_FIRST = """
import peft
import recurrent_gemma
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(recurrent_gemma.demo_path())
names = [name for name, _ in peft.get_peft_model(model, peft.LoraConfig(r=8)).named_parameters()]
print(sum("lora_A" in name for name in names))
"""


def test_peft_knows_the_targets_where_it_is_imported_first(tmp_path: Path):
    recurrent, attention = 4, 2
    assert run_python("-c", PEFT_FIRST, cwd=tmp_path).stdout == f"{recurrent * 6 + attention * 7}\n"


def test_registering_tells_peft_the_targets_and_unregistering_takes_them_back():
    recurrent_gemma.register()
    recurrent_gemma.assert_active()
    model = tiny_model()
    assert trained_names(adapted(peft.LoraConfig(r=16))) == trained_names(adapted(lora_config(model)))
    recurrent_gemma.unregister()
    try:
        with pytest.raises(ValueError, match="target_modules"):
            adapted(peft.LoraConfig(r=16))
    finally:
        recurrent_gemma.register()


def test_without_peft_the_command_is_named(monkeypatch: pytest.MonkeyPatch):
    model, adapter = tiny_model(), peft.LoraConfig()
    monkeypatch.setitem(sys.modules, "peft", None)
    for call in (lambda: lora_config(model), lambda: check_adapter(model, adapter)):
        with pytest.raises(ImportError, match=r'pip install "recurrent-gemma\[train\]"'):
            call()
