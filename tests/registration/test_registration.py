"""What Transformers resolves to while registered, and that unregistering puts everything back."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)
from transformers.models.auto import configuration_auto, modeling_auto, tokenization_auto
from transformers.models.recurrent_gemma import RecurrentGemmaForCausalLM as InTreeForCausalLM

import recurrent_gemma

# Names that Transformers has classes of its own for.
NAMES = (
    "RecurrentGemmaConfig",
    "RecurrentGemmaForCausalLM",
    "RecurrentGemmaModel",
    "RecurrentGemmaPreTrainedModel",
)
TASKS = {
    AutoModelForCausalLM: recurrent_gemma.RecurrentGemmaForCausalLM,
    AutoModelForQuestionAnswering: recurrent_gemma.RecurrentGemmaForQuestionAnswering,
    AutoModelForSequenceClassification: recurrent_gemma.RecurrentGemmaForSequenceClassification,
    AutoModelForTokenClassification: recurrent_gemma.RecurrentGemmaForTokenClassification,
}


@pytest.fixture(autouse=True)
def _registered_again() -> Iterator[None]:
    yield
    recurrent_gemma.unregister()
    recurrent_gemma.register()
    recurrent_gemma.assert_active()


def _tables() -> dict[str, dict]:
    """Every registry of the three Auto modules, as it lives."""
    return {
        name: getattr(value, "_extra_content", value)
        for module in (configuration_auto, modeling_auto, tokenization_auto)
        for name, value in vars(module).items()
        if hasattr(value, "_extra_content") or name.startswith("REGISTERED_")
    }


def _registries() -> dict[str, dict]:
    """A copy of every registry."""
    return {name: dict(table) for name, table in _tables().items()}


def _module_names() -> dict[str, type]:
    """The family's names that the transformers module holds, not those it would load when asked."""
    module = vars(sys.modules["transformers"])
    return {name: module[name] for name in module if name.startswith("RecurrentGemma")}


def test_auto_classes_resolve_to_this_package(checkpoint: Path):
    config = AutoConfig.from_pretrained(checkpoint)
    assert type(config) is recurrent_gemma.RecurrentGemmaConfig
    assert type(AutoConfig.for_model("recurrent_gemma")) is recurrent_gemma.RecurrentGemmaConfig
    for auto_class, model_class in {AutoModel: recurrent_gemma.RecurrentGemmaModel, **TASKS}.items():
        assert type(auto_class.from_config(config)) is model_class
        assert type(auto_class.from_pretrained(checkpoint)) is model_class
        assert getattr(transformers, model_class.__name__) is model_class


def test_names_in_the_transformers_module_are_this_packages(checkpoint: Path):
    # As TRL and `transformers serve` resolve them.
    (architecture,) = json.loads((checkpoint / "config.json").read_text())["architectures"]
    assert getattr(transformers, architecture) is recurrent_gemma.RecurrentGemmaForCausalLM
    for name in NAMES:
        assert getattr(sys.modules["transformers"], name) is getattr(recurrent_gemma, name)


def test_transformers_own_classes_stay_within_reach():
    assert InTreeForCausalLM.__module__.startswith("transformers.models.")
    assert transformers.models.recurrent_gemma.RecurrentGemmaForCausalLM is InTreeForCausalLM


def test_pipeline_uses_this_package(checkpoint: Path):
    made = pipeline("text-generation", model=str(checkpoint))
    assert type(made.model) is recurrent_gemma.RecurrentGemmaForCausalLM
    assert type(made.tokenizer) is recurrent_gemma.RecurrentGemmaTokenizer
    (output,) = made("In the ", max_new_tokens=3, do_sample=False)
    assert output["generated_text"].startswith("In the ")


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("RecurrentGemmaTokenizer", recurrent_gemma.RecurrentGemmaTokenizer),
        (None, recurrent_gemma.RecurrentGemmaTokenizer),
        ("GemmaTokenizer", transformers.GemmaTokenizer),
        ("GemmaTokenizerFast", transformers.GemmaTokenizer),
    ],
)
def test_tokenizer_is_the_one_that_the_directory_names(
    named: str | None, expected: type, checkpoint: Path, tmp_path: Path
):
    directory = shutil.copytree(checkpoint, tmp_path / "copy")
    file = directory / "tokenizer_config.json"
    fields = json.loads(file.read_text())
    del fields["tokenizer_class"]
    file.write_text(json.dumps(fields if named is None else fields | {"tokenizer_class": named}))
    assert type(AutoTokenizer.from_pretrained(directory)) is expected


def test_registering_twice_changes_nothing():
    before = _registries(), _module_names()
    recurrent_gemma.register()
    assert (_registries(), _module_names()) == before
    recurrent_gemma.unregister()
    assert not recurrent_gemma.is_active()
    recurrent_gemma.unregister()
    recurrent_gemma.register()
    assert (_registries(), _module_names()) == before


def test_equals_what_the_public_register_methods_do():
    ours = _registries()
    recurrent_gemma.unregister()
    before = _registries()
    config = recurrent_gemma.RecurrentGemmaConfig
    try:
        AutoConfig.register("recurrent_gemma", config, exist_ok=True)
        AutoModel.register(config, recurrent_gemma.RecurrentGemmaModel, exist_ok=True)
        for auto_class, model_class in TASKS.items():
            auto_class.register(config, model_class, exist_ok=True)
        AutoTokenizer.register(config, recurrent_gemma.RecurrentGemmaTokenizer, exist_ok=True)
        assert _registries() == ours
    finally:
        for name, table in _tables().items():
            table.clear()
            table.update(before[name])


def test_unregistered_gives_transformers_own_classes(checkpoint: Path):
    recurrent_gemma.unregister()
    assert type(AutoConfig.from_pretrained(checkpoint)).__module__.startswith("transformers.models.")
    assert type(AutoConfig.for_model("recurrent_gemma")).__module__.startswith("transformers.models.")
    for name in NAMES:
        assert getattr(transformers, name).__module__.startswith("transformers.models.")
    # Transformers has no such heads of its own.
    assert not hasattr(transformers, "RecurrentGemmaForSequenceClassification")
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(checkpoint))
    with pytest.raises(
        RuntimeError, match=r"AutoModelForCausalLM gives Transformers' default.*recurrent-gemma exec --"
    ):
        recurrent_gemma.assert_active()


@pytest.mark.parametrize("way", ["auto", "module"])
def test_what_another_package_registers_is_reported_and_left_alone(way: str):
    class Other(recurrent_gemma.RecurrentGemmaForCausalLM):
        pass

    registry = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING._extra_content
    if way == "auto":
        AutoModelForCausalLM.register(recurrent_gemma.RecurrentGemmaConfig, Other, exist_ok=True)
        table, key, place = registry, recurrent_gemma.RecurrentGemmaConfig, "AutoModelForCausalLM"
    else:
        transformers.RecurrentGemmaForCausalLM = Other
        table, key, place = vars(transformers), Other.__base__.__name__, "transformers.RecurrentGemmaForCausalLM"
    assert not recurrent_gemma.is_active()
    with pytest.raises(RuntimeError, match=rf"{place} gives {Other.__module__}.*Other"):
        recurrent_gemma.assert_active()
    recurrent_gemma.unregister()
    assert table[key] is Other

    recurrent_gemma.register()
    recurrent_gemma.assert_active()
    recurrent_gemma.unregister()
    assert table.pop(key) is Other
