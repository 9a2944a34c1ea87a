"""Bad input raises an error that names the field, what was expected and what was given, and changes no cache."""

import re

import pytest
import torch
from transformers import DynamicCache, StaticCache

from recurrent_gemma.modeling import RecurrentGemmaCache, RecurrentGemmaForCausalLM, RecurrentGemmaModel
from tests.modeling.models import tiny_config, tiny_model
from tests.modeling.refusals import (
    IDS,
    LENGTH,
    LONG_IDS,
    ONE_ROW,
    PAST,
    ROWS,
    assert_refused,
    changed,
    filled_cache,
    mask_of,
    same,
    snapshot,
)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


# --- Tokens -----------------------------------------------------------------------------------------------------------

TOKENS = {
    "id below 0": (ValueError, "input_ids: expected ids from 0 to 96", {"input_ids": changed(IDS, -1)}),
    "id too large": (ValueError, "input_ids: expected ids from 0 to 96", {"input_ids": changed(IDS, 97)}),
    "value and place are named": (ValueError, "got 97 at (1, 5)", {"input_ids": changed(IDS, 97)}),
    "float ids": (TypeError, "input_ids: expected an int64 or int32 tensor, got torch.float32",
                  {"input_ids": IDS.float()}),
    "bool ids": (TypeError, "input_ids: expected an int64 or int32 tensor, got torch.bool", {"input_ids": IDS.bool()}),
    "no columns": (ValueError, "input_ids: expected a non-empty (B, L) tensor, got shape (2, 0)",
                   {"input_ids": IDS[:, :0]}),
    "no rows": (ValueError, "input_ids: expected a non-empty (B, L) tensor, got shape (0, 6)", {"input_ids": IDS[:0]}),
    "1-D ids": (ValueError, "input_ids: expected a non-empty (B, L) tensor, got shape (6,)", {"input_ids": IDS[0]}),
    "3-D ids": (ValueError, "input_ids: expected a non-empty (B, L) tensor, got shape (1, 2, 6)",
                {"input_ids": IDS[None]}),
    "a list": (TypeError, "input_ids: expected an int64 or int32 tensor, got list", {"input_ids": IDS.tolist()}),
    "neither": (ValueError, "input_ids, inputs_embeds: expected exactly one of them, got neither", {}),
    "both": (ValueError, "input_ids, inputs_embeds: expected exactly one of them, got both",
             {"input_ids": IDS, "inputs_embeds": torch.zeros(2, 6, 32)}),
    "embeddings of another width": (ValueError, "inputs_embeds: expected a non-empty (B, L, D) tensor with D = 32, got "
                                    "shape (2, 6, 31)", {"inputs_embeds": torch.zeros(2, 6, 31)}),
    "2-D embeddings": (ValueError, "inputs_embeds: expected a non-empty (B, L, D) tensor", {
        "inputs_embeds": torch.zeros(6, 32)}),
    "no embeddings": (ValueError, "inputs_embeds: expected a non-empty (B, L, D) tensor", {
        "inputs_embeds": torch.zeros(2, 0, 32)}),
    "ids as embeddings": (TypeError, "inputs_embeds: expected", {"inputs_embeds": torch.zeros(2, 6, 32).long()}),
    "a list of embeddings": (TypeError, "inputs_embeds: expected", {"inputs_embeds": torch.zeros(2, 6, 32).tolist()}),
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize("cached", [False, True])
def test_tokens(model, name, cached):
    error, message, inputs = TOKENS[name]
    cache = filled_cache(model) if cached else None
    for part in (model, model.model):
        assert_refused(part, error, message, cache, **inputs)


# --- Masks ------------------------------------------------------------------------------------------------------------

MASKS = {
    "1-D": (ValueError, "got (6,)", lambda past: mask_of(LENGTH)),
    "3-D": (ValueError, "got (2, 1, 6)", lambda past: mask_of(ROWS, 1, LENGTH)),
    "4-D": (ValueError, "got (2, 1, 6, 6); it", lambda past: mask_of(ROWS, 1, LENGTH, LENGTH)),
    "too short": (ValueError, "attention_mask: expected shape", lambda past: mask_of(ROWS, past + LENGTH - 1)),
    "too long": (ValueError, "attention_mask: expected shape", lambda past: mask_of(ROWS, past + LENGTH + 1)),
    "too few rows": (ValueError, "attention_mask: expected shape", lambda past: mask_of(1, past + LENGTH)),
    "empty": (ValueError, "attention_mask: expected shape", lambda past: mask_of(ROWS, 0)),
    "value 2": (ValueError, "attention_mask: expected 0 (pad) or 1 (token), got 2 at (1, 5)",
                lambda past: changed(mask_of(ROWS, past + LENGTH), 2)),
    "value 0.5": (ValueError, "attention_mask: expected 0 (pad) or 1 (token), got 0.5",
                  lambda past: changed(mask_of(ROWS, past + LENGTH).float(), 0.5)),
    "additive": (ValueError, "attention_mask: expected 0 (pad) or 1 (token), got -inf",
                 lambda past: changed(torch.zeros(ROWS, past + LENGTH), -torch.inf)),
    "not a number": (ValueError, "attention_mask: expected 0 (pad) or 1 (token), got nan",
                     lambda past: changed(mask_of(ROWS, past + LENGTH).float(), torch.nan)),
    "prepared": (TypeError, "attention_mask: expected a (B, past + new) tensor of 0 and 1, got dict",
                 lambda past: {"sliding_attention": mask_of(ROWS, past + LENGTH)}),
    "a list": (TypeError, "attention_mask: expected a (B, past + new) tensor of 0 and 1, got list",
               lambda past: mask_of(ROWS, past + LENGTH).tolist()),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("cached", [False, True])
def test_masks(model, name, cached):
    error, message, make = MASKS[name]
    cache = filled_cache(model) if cached else None
    assert_refused(model, error, message, cache, input_ids=IDS, attention_mask=make(PAST if cached else 0))


def test_mask_of_new_tokens_only(model):
    message = "attention_mask: expected shape (B, past + new columns) = (2, 15), got (2, 6); it covers the 9 columns"
    assert_refused(model, ValueError, message, filled_cache(model), input_ids=IDS, attention_mask=mask_of(ROWS, LENGTH))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32, torch.bfloat16])
def test_masks_of_any_dtype_are_the_same(model, dtype):
    mask = changed(mask_of(ROWS, LENGTH), 0)
    with torch.no_grad():
        assert torch.equal(model(IDS, attention_mask=mask.to(dtype)).logits, model(IDS, attention_mask=mask).logits)


# --- Caches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda config: DynamicCache(),
        lambda config: DynamicCache(config=config),
        lambda config: StaticCache(config=config, max_cache_len=16),
        lambda config: ((torch.zeros(1), torch.zeros(1)),),
        lambda config: True,
    ],
)
def test_cache_of_another_class(model, make):
    cache = make(model.config)
    message = f"past_key_values: expected a RecurrentGemmaCache, got {type(cache).__name__}"
    assert_refused(model, TypeError, message, input_ids=IDS, past_key_values=cache)
    with pytest.raises(TypeError, match=re.escape(message)):
        model.generate(IDS, past_key_values=cache, max_new_tokens=2)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"attention_window_size": 9}, "attention_window_size = 7), got one of another model"),
        ({"num_hidden_layers": 6}, "layers_block_type = "),
        ({"block_types": ["attention"]}, "layers_block_type = "),
        ({"num_key_value_heads": 2}, "num_key_value_heads = 1), got one of another model (num_key_value_heads = 2)"),
        ({"hidden_size": 64}, "head_dim = 8), got one of another model (head_dim = 16)"),
        ({"conv1d_width": 3}, "conv1d_width = 4), got one of another model (conv1d_width = 3)"),
    ],
)  # fmt: skip
def test_cache_of_another_model(model, fields, named):
    # Whether or not it has been used.
    message = f"past_key_values: expected a cache of this model ({named}"
    other = tiny_model(tiny_config(**fields))
    for cache in (filled_cache(other), RecurrentGemmaCache(other.config)):
        with pytest.raises(ValueError, match=re.escape(message)):
            model(IDS, past_key_values=cache)
        with pytest.raises(ValueError, match=re.escape(message)):
            model.generate(LONG_IDS, past_key_values=cache, max_new_tokens=2)


@pytest.mark.parametrize("rows", [1, 3])
def test_cache_of_another_batch_size(model, rows):
    message = f"past_key_values: expected a cache of as many rows as the inputs have (2), got one of {rows}"
    assert_refused(model, ValueError, message, filled_cache(model, rows), input_ids=IDS)


@pytest.mark.parametrize("length", [1, LENGTH])
def test_failure_inside_a_layer_leaves_the_cache_as_it_was(model, length):
    def fail(*args):
        raise FloatingPointError("layer 3")

    ids, cache = IDS[:, :length], filled_cache(model)
    handle = model.model.layers[3].register_forward_hook(fail)
    try:
        with torch.no_grad():
            assert_refused(model, FloatingPointError, "layer 3", cache, input_ids=ids)
    finally:
        handle.remove()
    before = snapshot(cache)
    with torch.no_grad():
        expected = model(ids, past_key_values=filled_cache(model)).logits
        assert torch.equal(model(ids, past_key_values=cache).logits, expected)
    # What succeeds does change it.
    assert not same(before, snapshot(cache))


# --- Labels and options -----------------------------------------------------------------------------------------------

OPTIONS = {
    "labels of another length": (ValueError, "labels: expected shape (B, L) = (2, 6), got (2, 5)",
                                 {"labels": IDS[:, 1:]}),
    "1-D labels": (ValueError, "labels: expected shape (B, L) = (2, 6), got (6,)", {"labels": IDS[0]}),
    "one row of labels": (ValueError, "labels: expected shape (B, L) = (2, 6), got (1, 6)", {"labels": ONE_ROW}),
    "label too large": (ValueError, "labels: expected", {"labels": changed(IDS, 97)}),
    "label below 0": (ValueError, "labels: expected", {"labels": changed(IDS, -1)}),
    "float labels": (TypeError, "labels: expected", {"labels": IDS.float()}),
    "shifted labels of another length": (ValueError, "shift_labels: expected shape (B, L) = (2, 6), got (2, 5)",
                                         {"labels": IDS, "shift_labels": IDS[:, 1:]}),
    "labels without their logits": (ValueError, "logits_to_keep: expected 0 together with labels",
                                    {"labels": IDS, "logits_to_keep": 1}),
    "logits_to_keep below 0": (ValueError, "logits_to_keep: expected", {"logits_to_keep": -2}),
    "unknown argument": (TypeError, "forward: expected arguments that RecurrentGemma knows, got also ['window']",
                         {"window": 3}),
    "unknown arguments": (TypeError, "got also ['token_type_ids', 'window']",
                          {"window": 3, "token_type_ids": torch.zeros(2, 6)}),
    "weights of a fast backend": (ValueError, 'output_attentions: expected attn_implementation="eager"',
                                  {"output_attentions": True}),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_options(model, name):
    error, message, inputs = OPTIONS[name]
    assert_refused(model, error, message, filled_cache(model), input_ids=IDS, **inputs)


@pytest.mark.parametrize("name", ["attention_window_size", "num_key_value_heads", "lru_width"])
def test_config_that_was_changed_after_its_making(name):
    config = tiny_config()
    setattr(config, name, 0)
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        RecurrentGemmaForCausalLM(config)


@pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "fast"])
def test_unsupported_attention_implementations(model, name, tmp_path):
    model.save_pretrained(tmp_path)
    routes = (
        lambda: RecurrentGemmaForCausalLM(tiny_config(attn_implementation=name)),
        lambda: RecurrentGemmaModel(tiny_config(attn_implementation=name)),
        lambda: RecurrentGemmaForCausalLM.from_pretrained(tmp_path, attn_implementation=name),
        lambda: tiny_model().set_attn_implementation(name),
    )
    for route in routes:
        # Transformers says it where a library is missing.
        with pytest.raises((ValueError, ImportError), match=r"(?i)attn_implementation|flash"):
            route()


def test_eager_gives_weights(model):
    eager = tiny_model(tiny_config(attn_implementation="eager"))
    with torch.no_grad():
        weights = eager(IDS, output_attentions=True).attentions
    assert [tuple(layer.shape) for layer in weights] == [(ROWS, 4, LENGTH, LENGTH)]


# --- Generation -------------------------------------------------------------------------------------------------------

GENERATION = {
    "quantized cache": (ValueError, "cache_implementation: expected None, 'dynamic' or 'static', got 'quantized', for "
                        "which this family has no use: the window is all there is to quantize",
                        {"cache_implementation": "quantized"}),
    "offloaded cache": (ValueError, "cache_implementation: expected None, 'dynamic' or 'static', got 'offloaded', for "
                        "which this family has no use: the state of a layer is too small",
                        {"cache_implementation": "offloaded"}),
    "mask too short": (ValueError, "attention_mask: expected shape",
                       {"attention_mask": changed(mask_of(ROWS, LENGTH - 1), 0)}),
    "unknown argument": (ValueError, "'window'", {"window": 3}),
}  # fmt: skip


@pytest.mark.parametrize("name", GENERATION)
def test_generation(model, name):
    error, message, options = GENERATION[name]
    with pytest.raises(error, match=re.escape(message)):
        model.generate(IDS, max_new_tokens=3, **options)


def test_assisted_generation_with_the_static_form(model):
    cache = RecurrentGemmaCache(model.config, static=True)
    with pytest.raises(NotImplementedError, match="static form overwrites its past"):
        model.generate(ONE_ROW, assistant_model=tiny_model(seed=1), past_key_values=cache, max_new_tokens=3)
    assert cache.get_seq_length() == 0


@pytest.mark.parametrize("name", ["generate_batch", "init_continuous_batching", "continuous_batching_context_manager"])
def test_continuous_batching(model, name):
    with pytest.raises(NotImplementedError, match=r"generate_batch: .* no place for a recurrent state"):
        getattr(model, name)([[5, 6]])


def test_cache_and_cache_implementation(model):
    cache = filled_cache(model)
    before = snapshot(cache)
    with pytest.raises(ValueError, match="cache_implementation: expected None together with past_key_values"):
        model.generate(LONG_IDS, past_key_values=cache, cache_implementation="dynamic", max_new_tokens=3)
    assert same(before, snapshot(cache))
