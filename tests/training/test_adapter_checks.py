"""What PEFT would do silently wrong, or refuse obscurely, is refused by name; what passes the check works."""

from pathlib import Path
from typing import Any

import pytest
import torch

from recurrent_gemma.modeling import (
    RecurrentGemmaForQuestionAnswering,
    RecurrentGemmaForSequenceClassification,
    RecurrentGemmaForTokenClassification,
    RecurrentGemmaModel,
)
from recurrent_gemma.training import check_adapter, lora_config, lora_coverage
from tests.modeling.models import tiny_config, tiny_model
from tests.support import require
from tests.training.adapters import adapted, logits_of, some_ids

peft = require("peft")

GATES = ["rg_lru.input_gate_weight", "rg_lru.recurrent_gate_weight"]
UNTIED = {"tie_word_embeddings": False}

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"target_modules": ["conv_1d"]}, r"target_modules: .*layers\.0\..*conv_1d .*modules_to_save=\[\"conv_1d\"\]"),
    ({"target_modules": ["rg_lru"]}, r"target_modules: .*rg_lru .*lora_config\(model, gates=True\)"),
    ({"target_modules": ["final_norm"]}, r"target_modules: .*final_norm .*modules_to_save=\[\"final_norm\"\]"),
    ({"target_modules": r".*temporal_block"}, r"target_modules: .*temporal_block .*name the linear layers in it"),
    ({"target_modules": ["q_proj", "query"]}, r"target_modules: .*\['query'\], which name none.*linear_x"),
    ({"target_modules": "query"}, r"target_modules: .*'query', which name none"),
    ({"target_modules": ["q_proj", "embed_tokens"]}, r"target_modules: .*no model\.embed_tokens .*tied.*ensure_weight"),
    ({"target_modules": ["lm_head"]}, r"target_modules: .*no lm_head .*tied"),
    ({"target_parameters": ["conv_1d.weight"]}, r"target_parameters: .*\(48, 1, 4\).*modules_to_save=\[\"conv_1d\"\]"),
    (
        {"target_parameters": ["rg_lru.recurrent_param"]},
        r"target_parameters: .*\(48,\).*save=\[\"rg_lru\"\]",
    ),
    ({"target_parameters": ["rg_lru.input_gate_bias"]}, r"target_parameters: .*input_gate_bias of shape \(4, 12\)"),
    ({"target_parameters": ["final_norm.weight"]}, r"target_parameters: .*modules_to_save=\[\"final_norm\"\]"),
    ({"target_parameters": ["embed_tokens.weight"]}, r"target_parameters: .*no model\.embed_tokens\.weight .*tied"),
    ({"target_parameters": [*GATES, "rg_lru.gate"]}, r"target_parameters: .*\['rg_lru\.gate'\], which name none"),
    ({"target_parameters": ["linear_x.weight"]}, r"target_parameters: .*target_modules leaves out.*linear_x"),
    ({"target_parameters": GATES, "layers_to_transform": [0]}, r"layers_to_transform: .*layers\.1\..*gates=True"),
    ({"target_parameters": GATES, "lora_dropout": 0.1}, r"lora_dropout: expected 0 .*leave the gates out"),
    ({"target_parameters": GATES, "use_dora": True}, r"use_dora: expected False"),
    ({"target_parameters": GATES, "lora_bias": True}, r"lora_bias: expected False"),
    ({"target_parameters": GATES, "init_lora_weights": "pissa"}, r"init_lora_weights: .*'gaussian'.*'pissa'"),
    ({"target_parameters": GATES, "modules_to_save": ["rg_lru"]}, r"modules_to_save: .*rg_lru.*not both"),
    (
        {"target_parameters": GATES, "modules_to_save": ["temporal_block"]},
        r"modules_to_save: .*temporal_block.*not",
    ),
    ({"modules_to_save": ["score"]}, r"modules_to_save: .*\['score'\], which name none"),
    ({"modules_to_save": ["embed_tokens"]}, r"modules_to_save: expected ensure_weight_tying=True"),
    ({"layers_to_transform": [0, 5]}, r"layers_to_transform: expected layers from 0 to 4, got \[5\]"),
    ({"layer_replication": [(0, 3), (1, 5)]}, r"layer_replication: expected None"),
]

WORKS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"use_dora": True}),
    ({}, {"use_rslora": True, "lora_dropout": 0.1}),
    ({}, {"init_lora_weights": "pissa"}),
    ({}, {"target_modules": "all-linear"}),
    ({}, {"target_modules": r".*layers\.[01]\..*linear_[xy]"}),
    ({}, {"target_modules": [], "target_parameters": ["linear_x.weight", *GATES]}),
    ({}, {"gates": True, "modules_to_save": ["conv_1d", "final_norm"]}),
    ({}, {"gates": True, "layers_to_transform": [0, 4], "init_lora_weights": "gaussian"}),
    ({}, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    ({}, {"trainable_token_indices": [5, 6]}),
    (UNTIED, {"target_modules": ["embed_tokens", "lm_head"]}),
    (UNTIED, {"modules_to_save": ["lm_head"]}),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=[str(fields) for fields, _ in REFUSED])
def test_refused_by_name(fields: dict[str, Any], message: str):
    model = tiny_model()
    for given in (model, model.config):
        with pytest.raises(ValueError, match=message):
            lora_config(given, **fields)
    default = lora_config(model)
    adapter = peft.LoraConfig(**{"target_modules": default.target_modules, **fields})
    with pytest.raises(ValueError, match=message):
        check_adapter(adapted(default, model), adapter)


@pytest.mark.parametrize(("config", "options"), WORKS, ids=[str(options) for _, options in WORKS])
def test_what_passes_does_what_it_says(config: dict[str, Any], options: dict[str, Any]):
    model = tiny_model(tiny_config(**config))
    ids = some_ids(model)
    wrapped = adapted(lora_config(model, rank=4, **options), model)
    expected = logits_of(wrapped, ids)
    assert (expected - logits_of(tiny_model(tiny_config(**config)), ids)).abs().max() > 0.1
    assert (logits_of(wrapped.merge_and_unload(), ids) - expected).abs().max() < 1e-3 * expected.abs().max()


HEADS: list[tuple[type, str, dict[str, Any]]] = [
    (RecurrentGemmaForSequenceClassification, "score", {"target_modules": ["embed_tokens", "q_proj"]}),
    (RecurrentGemmaForSequenceClassification, "score", {"modules_to_save": ["embed_tokens", "score"]}),
    (RecurrentGemmaForTokenClassification, "score", {"target_modules": ["embed_tokens", "q_proj"]}),
    (RecurrentGemmaForQuestionAnswering, "qa_outputs", {"target_modules": ["embed_tokens", "q_proj"]}),
]


# PEFT goes by the config alone, and says that it saves the embeddings as well.
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
@pytest.mark.filterwarnings("ignore:Model (has|with) `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize(("cls", "head", "options"), HEADS)
def test_heads_without_an_output_layer(cls: type, head: str, options: dict[str, Any], tmp_path: Path):
    def base() -> Any:
        torch.manual_seed(0)
        return cls(tiny_config(num_labels=2)).eval()

    def outputs(model: Any) -> torch.Tensor:
        with torch.no_grad():
            found = model(input_ids=ids)
        return found.logits if "logits" in found else torch.stack((found.start_logits, found.end_logits))

    model = base()
    ids = some_ids(model)
    before = outputs(model)
    wrapped = adapted(lora_config(model, rank=4, **options), model)
    # The names that PEFT itself has added by now, of which the model may have some or none.
    assert head in wrapped.peft_config["default"].modules_to_save
    check_adapter(wrapped, wrapped.peft_config["default"])
    expected = outputs(wrapped)
    assert (expected - before).abs().max() > 0.1
    wrapped.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(base(), tmp_path).eval()
    assert torch.equal(outputs(loaded), expected)
    check_adapter(base(), peft.PeftConfig.from_pretrained(tmp_path))
    merged = outputs(loaded.merge_and_unload())
    assert (merged - expected).abs().max() < 1e-3 * expected.abs().max()


def test_a_bare_model_has_one_use_of_its_embeddings():
    bare = RecurrentGemmaModel(tiny_config())
    assert lora_config(bare, target_modules=["embed_tokens"]).target_modules == {"embed_tokens"}
    with pytest.raises(ValueError, match=r"modules_to_save: .*\['classifier'\], which name none"):
        lora_config(bare, modules_to_save=["classifier"])


@pytest.mark.parametrize("method", ["PrefixTuningConfig", "CartridgeConfig", "AdaptionPromptConfig"])
def test_prefixes_of_keys_are_refused(method: str):
    fields = {"adapter_layers": 1, "adapter_len": 2} if method.startswith("Adaption") else {"num_virtual_tokens": 3}
    with pytest.raises(ValueError, match=r"peft_type: .*recurrent blocks have none; use LoRA, or prompt tuning"):
        check_adapter(tiny_model(), getattr(peft, method)(task_type="CAUSAL_LM", **fields))


# --- What PEFT does without the check: the reason for it --------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Model (has|with) `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_peft_merges_an_adapter_of_tied_embeddings_wrongly(name: str):
    wrapped = adapted(peft.LoraConfig(r=4, target_modules=[name]))
    ids = some_ids(wrapped)
    expected = logits_of(wrapped, ids)
    assert (logits_of(wrapped.merge_and_unload(), ids) - expected).abs().max() > 0.1


def test_peft_leaves_out_what_it_does_not_find():
    adapter = peft.LoraConfig(target_modules=["q_proj", "query"], modules_to_save=["score"], layers_to_transform=[2, 9])
    assert lora_coverage(adapted(adapter)).count("adapted") == 32 * 32


def test_peft_adapts_parameters_of_all_layers():
    adapter = peft.LoraConfig(target_modules=["q_proj"], target_parameters=GATES, layers_to_transform=[2])
    blocks = {row.block for row in lora_coverage(adapted(adapter)).rows if row.status == "adapted"}
    assert blocks == {0, 1, 2, 3, 4}


def test_a_disabled_adapter_that_trains_biases_is_not_the_base_model():
    model = tiny_model()
    ids = some_ids(model)
    base = logits_of(model, ids)
    wrapped = adapted(lora_config(model, bias="all"), model)
    with pytest.warns(UserWarning, match="does not produce the same output"), wrapped.disable_adapter():
        assert (logits_of(wrapped, ids) - base).abs().max() > 0.1


def test_without_a_gradient_a_forward_changes_no_parameter_of_the_gates():
    model = tiny_model()
    wrapped = adapted(lora_config(model, gates=True), model)
    before = {name: tensor.clone() for name, tensor in wrapped.state_dict().items()}
    logits_of(wrapped, some_ids(model))
    after = wrapped.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_methods_that_change_no_layer_pass():
    prompt = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    assert check_adapter(tiny_model(tiny_config()), prompt) is None
