"""PEFT's other methods: those that wrap layers or prepend embeddings train, those that prepend keys are refused."""

from typing import Any

import pytest
import torch

from recurrent_gemma.training import lora_config
from tests.modeling.models import tiny_model
from tests.support import require
from tests.tolerances import ROWS_EQUAL_SOLO_LOGITS, assert_close, logits_tolerance
from tests.training.adapters import adapted, draw, generated, logits_of, some_ids

peft = require("peft")

# PEFT's own announcement that it drops positions, which count the prompt by themselves here.
pytestmark = pytest.mark.filterwarnings("ignore:Position ids are not supported for parameter efficient:UserWarning")

WRAPPING: dict[str, dict[str, Any]] = {
    "IA3Config": {
        "target_modules": ["k_proj", "v_proj", "linear_out", "down_proj"],
        "feedforward_modules": ["down_proj"],
    },
    "LoHaConfig": {"r": 4},
    "LoKrConfig": {"r": 4},
    "AdaLoraConfig": {"total_step": 10},
    "VeraConfig": {"r": 4},
    "OFTConfig": {"oft_block_size": 4},
    "HRAConfig": {"r": 4},
    "MissConfig": {"r": 4},
}
PROMPTS: dict[str, dict[str, Any]] = {"PromptTuningConfig": {}, "PromptEncoderConfig": {"encoder_hidden_size": 16}}
KEYS = ("PrefixTuningConfig", "CartridgeConfig")


@pytest.mark.parametrize("method", WRAPPING)
def test_methods_that_wrap_linear_layers(method: str):
    model = tiny_model()
    ids = some_ids(model)
    base = logits_of(model, ids)
    targets = lora_config(model).target_modules
    wrapped = adapted(getattr(peft, method)(**{"target_modules": targets, **WRAPPING[method]}), model)
    expected = logits_of(wrapped, ids)
    assert (expected - base).abs().max() > 0.01
    assert torch.equal(generated(wrapped, ids), generated(wrapped, ids, use_cache=False))
    with wrapped.disable_adapter():
        assert torch.equal(logits_of(wrapped, ids), base)
    tolerance = logits_tolerance(ROWS_EQUAL_SOLO_LOGITS, expected)
    assert_close(logits_of(wrapped.merge_and_unload(), ids), expected, tolerance, "merged")


def prompted(method: str, fields: dict[str, Any]) -> Any:
    torch.manual_seed(3)
    wrapped = adapted(getattr(peft, method)(task_type="CAUSAL_LM", num_virtual_tokens=3, **fields))
    with torch.no_grad():
        for parameter in wrapped.prompt_encoder.parameters():
            parameter.normal_()
    return wrapped


@pytest.mark.parametrize("method", PROMPTS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_prompt_tuning_puts_embeddings_first(method: str, use_cache: bool):
    wrapped = prompted(method, PROMPTS[method])
    model = wrapped.get_base_model()
    ids = some_ids(model, length=6)

    def logits_on_the_way(ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        options = {"return_dict_in_generate": True, "output_logits": True, "use_cache": use_cache}
        output = generated(wrapped, ids, attention_mask=mask, **options)
        return output.sequences, torch.stack(output.logits, dim=1)

    sequences, actual = logits_on_the_way(ids, torch.ones_like(ids))
    with torch.no_grad():
        embeddings = torch.cat((wrapped.get_prompt(2), model.get_input_embeddings()(sequences)), dim=1)
        expected = model(inputs_embeds=embeddings, use_cache=False).logits[:, 3 + 6 - 1 : -1]
    assert_close(actual, expected, logits_tolerance(ROWS_EQUAL_SOLO_LOGITS, expected), "generated with a prompt")
    # The prompt stands before the pads, which do not exist.
    pads = torch.zeros(2, 3, dtype=torch.long)
    mask = torch.cat((pads, torch.ones_like(ids)), dim=1)
    _, actual = logits_on_the_way(torch.cat((pads, ids), dim=1), mask)
    assert_close(actual, expected, logits_tolerance(ROWS_EQUAL_SOLO_LOGITS, expected), "behind pads")


@pytest.mark.parametrize("method", PROMPTS)
def test_a_prompt_is_trained(method: str):
    wrapped = prompted(method, PROMPTS[method]).train()
    ids = some_ids(wrapped)
    wrapped(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    assert trained and all(parameter.grad.any() for parameter in trained)


@pytest.mark.parametrize("method", KEYS)
def test_prefixes_of_keys_raise(method: str):
    wrapped = peft.get_peft_model(tiny_model(), getattr(peft, method)(task_type="CAUSAL_LM", num_virtual_tokens=3))
    draw(wrapped)
    ids = some_ids(wrapped, length=6)
    with pytest.raises(TypeError, match=r"expected a RecurrentGemmaCache, got DynamicCache"):
        wrapped(input_ids=ids, labels=ids)
    for use_cache in (True, False):
        with pytest.raises(TypeError, match=r"expected a RecurrentGemmaCache, got DynamicCache"):
            generated(wrapped, ids, use_cache=use_cache)


def test_adaption_prompts_raise():
    config = peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_layers=1, adapter_len=2)
    with pytest.raises(ValueError, match="Unsupported model type for adaption prompt: 'recurrent_gemma'"):
        peft.get_peft_model(tiny_model(), config)


@pytest.mark.parametrize("method", PROMPTS)
def test_prompts_are_not_for_packed_rows(method: str):
    # Says docs/adapters_and_preferences.md. Where this fails, PEFT has learned it.
    wrapped = prompted(method, PROMPTS[method])
    ids = some_ids(wrapped, rows=1)
    packed = torch.tensor([[*range(8), *range(12)]])
    with torch.no_grad():
        with pytest.warns(UserWarning, match="Position ids are not supported"):
            actual = wrapped(input_ids=ids, position_ids=packed, use_cache=False).logits
        one_document = logits_of(wrapped, ids)
        alone = logits_of(wrapped, ids[:, 8:])
    assert torch.equal(actual, one_document)
    assert (actual[:, -12:] - alone[:, -12:]).abs().max() > 0.1
