"""What a prefix cache refuses, by name, and that nothing is stored or counted then."""

import re

import pytest
import torch
from transformers import DynamicCache

from recurrent_gemma.modeling import PrefixCache, RecurrentGemmaCache
from tests.modeling.models import tiny_config, tiny_model

IDS = torch.arange(3, 12)
ROW = IDS[None]


@pytest.fixture
def prefixes(model):
    return PrefixCache(model.config, max_bytes=10**6)


def refused(prefixes, error, message, call):
    before = prefixes.statistics
    with pytest.raises(error, match=re.escape(message)):
        call()
    assert prefixes.statistics == before


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ("text", TypeError, "ids: expected an int64 or int32 tensor or a list of int, got str"),
        (5, TypeError, "got int"),
        ([3, 4.0], TypeError, "got a list with [3, 4.0]"),
        ([True, False], TypeError, "got a list"),
        (IDS.float(), TypeError, "got torch.float32"),
        ([], ValueError, "at least one token"),
        (IDS[:0], ValueError, "at least one token"),
        (IDS[None, None], ValueError, "at least one token"),
        (IDS.view(3, 3), ValueError, "expected one row, shape (L,) or (1, L), got (3, 3); pass row by row"),
        (torch.tensor([3, 97]), ValueError, "ids: expected ids from 0 to 96 (vocab_size - 1), got 97"),
        ([-1], ValueError, "got -1"),
    ],
)
def test_ids(model, prefixes, ids, error, message):
    for call in (prefixes.match, lambda ids: prefixes.prefill(model, ids), lambda ids: prefixes.generate(model, ids)):
        refused(prefixes, error, message, lambda call=call: call(ids))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"attention_mask": [[1] * 9]}, TypeError, "attention_mask: expected None or a tensor"),
        ({"attention_mask": torch.ones(1, 8)}, ValueError, "attention_mask: expected the shape of ids (1, 9)"),
        ({"attention_mask": (ROW > 3).long()}, ValueError, "attention_mask: expected ones, got a mask with pads"),
        ({"position_ids": ROW}, ValueError, "position_ids: expected None"),
        ({"cu_seq_lens_q": torch.tensor([0, 4, 9])}, ValueError, "cu_seq_lens_q: expected None"),
        ({"seq_idx": ROW}, ValueError, "seq_idx: expected None, got Tensor: packed documents"),
        ({"inputs_embeds": torch.zeros(1, 9, 32)}, ValueError, "inputs_embeds: expected None"),
        ({"past_key_values": DynamicCache()}, ValueError, "past_key_values: expected None"),
    ],
)
def test_pads_and_packed_documents(model, prefixes, options, error, message):
    refused(prefixes, error, message, lambda: prefixes.prefill(model, ROW, **options))
    refused(prefixes, error, message, lambda: prefixes.generate(model, ROW, **options))


def test_options_of_prefill_and_generate(model, prefixes):
    refused(prefixes, TypeError, "labels: expected", lambda: prefixes.prefill(model, ROW, labels=ROW))
    for options in ({"num_beams": 2}, {"num_return_sequences": 3, "do_sample": True}):
        name = next(iter(options))
        message = f"{name}: expected 1, got {options[name]}; prefill all but the last token"
        refused(prefixes, ValueError, message, lambda options=options: prefixes.generate(model, ROW, **options))
    refused(prefixes, ValueError, "use_cache: expected", lambda: prefixes.generate(model, ROW, use_cache=False))


def test_the_way_that_the_refusal_of_beams_names_works(model, prefixes):
    cache = prefixes.prefill(model, ROW[:, :-1])
    cache.batch_repeat_interleave(2)
    options = {"num_beams": 2, "do_sample": False, "max_new_tokens": 5, "attention_mask": torch.ones_like(ROW)}
    actual = model.generate(ROW, past_key_values=cache, **options)
    assert torch.equal(actual, model.generate(ROW, **options))


@pytest.mark.parametrize("field", [{"attention_window_size": 9}, {"lru_width": 64}, {"block_types": ["recurrent"]}])
def test_a_model_with_another_state(prefixes, field):
    other = tiny_model(tiny_config(**field))
    name = "layers_block_type" if "block_types" in field else next(iter(field))
    message = f"model: expected a model with the state of this PrefixCache ({name} = "
    refused(prefixes, ValueError, message, lambda: prefixes.prefill(other, ROW))
    refused(prefixes, ValueError, message, lambda: prefixes.generate(other, ROW))
    refused(
        prefixes,
        ValueError,
        "cache: expected a cache with the state of this PrefixCache",
        lambda: prefixes.insert(ROW, RecurrentGemmaCache(other.config)),
    )


def test_what_is_no_model_and_a_model_with_dropout(prefixes):
    refused(prefixes, TypeError, "model: expected a RecurrentGemma model", lambda: prefixes.prefill(None, ROW))
    dropping = tiny_model(tiny_config(attention_dropout=0.1)).train()
    refused(prefixes, ValueError, "call model.eval()", lambda: prefixes.prefill(dropping, ROW))
    prefixes.prefill(dropping.eval(), ROW)


def test_a_model_in_another_dtype(model, prefixes):
    prefixes.prefill(model, ROW)
    half = tiny_model().to(torch.bfloat16)
    cache = RecurrentGemmaCache(half.config)
    with torch.no_grad():
        half(ROW, past_key_values=cache)
    message = "expected states in torch.float32 like those stored, got torch.bfloat16"
    refused(prefixes, ValueError, message, lambda: prefixes.insert(ROW, cache))
    refused(prefixes, ValueError, message, lambda: prefixes.prefill(half, ROW))


def test_caches_that_have_read_something_else(model, prefixes):
    def filled(ids, static=False, **options):
        cache = RecurrentGemmaCache(model.config, static=static)
        with torch.no_grad():
            model(ids, past_key_values=cache, **options)
        return cache

    pads = torch.ones_like(ROW)
    pads[0, 0] = 0
    for cache, error, message in (
        (DynamicCache(), TypeError, "cache: expected a RecurrentGemmaCache, got DynamicCache"),
        (RecurrentGemmaCache(model.config), ValueError, "cache: expected one that has read ids, got an empty one"),
        (filled(ROW, static=True), ValueError, "cache: expected the default form, got the static one"),
        (filled(ROW.expand(2, -1)), ValueError, "cache: expected one row, got 2"),
        (filled(ROW[:, :8]), ValueError, "ids, cache: expected as many ids as the cache has read (8), got 9"),
        (filled(ROW, attention_mask=pads), ValueError, "cache: expected one document without pads"),
        (filled(ROW, seq_idx=(ROW > 6).long()), ValueError, "whose next position is 9, got 5"),
    ):
        refused(prefixes, error, message, lambda cache=cache: prefixes.insert(ROW, cache))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_bytes": 1e6}, TypeError, "max_bytes: expected an int, got float"),
        ({"max_bytes": 0}, ValueError, "max_bytes: expected at least 1, got 0"),
        ({"max_bytes": 100}, ValueError, "max_bytes: expected at least the "),
        ({"min_tokens": 0}, ValueError, "min_tokens: expected at least 1"),
        ({"policy": "fifo"}, ValueError, "policy: expected one of ['flops_per_byte', 'lru'], got 'fifo'"),
        ({"directory": "here"}, ValueError, "directory, max_disk_bytes: expected both or neither"),
        ({"max_disk_bytes": 10**6}, ValueError, "directory, max_disk_bytes: expected both or neither"),
    ],
)
def test_construction(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        PrefixCache(tiny_config(), **{"max_bytes": 10**6, **options})
    with pytest.raises(TypeError, match="config: expected a RecurrentGemmaConfig"):
        PrefixCache({}, max_bytes=10**6)


def test_flush_without_a_directory(prefixes):
    refused(prefixes, ValueError, "directory: expected one to write to", prefixes.flush)
