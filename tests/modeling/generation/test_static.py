"""The static form of the cache: what the dynamic one gives, at addresses that stay; and the forms that do not exist."""

import pytest
import torch

from recurrent_gemma.modeling import RecurrentGemmaCache
from recurrent_gemma.modeling.compat import CACHE_NAME
from tests.modeling.generation.shapes import PROMPT, WINDOW, build, continuation, every_shape, prompts

MODES = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 10},
    "several sequences": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 3},
}
NEW = 3 * WINDOW


def addresses(cache):
    return [tensor.data_ptr() for layer in cache.layers for tensor in layer.load()]


@every_shape
def test_static_equals_dynamic_for_three_windows(shape):
    model, inputs = build(shape), prompts(PROMPT, 3)
    static = continuation(model, inputs, cache_implementation="static", max_new_tokens=NEW)
    assert torch.equal(static, continuation(model, inputs, max_new_tokens=NEW))


@pytest.mark.parametrize("lengths", [(PROMPT,), (PROMPT, 3), (2, 1)], ids=["alone", "padded", "short"])
@pytest.mark.parametrize("mode", list(MODES))
def test_static_equals_dynamic_however_tokens_are_chosen(lengths, mode):
    model, inputs = build(), prompts(*lengths)
    options = {"max_new_tokens": NEW, **MODES[mode]}
    static = continuation(model, inputs, cache_implementation="static", **options)
    assert torch.equal(static, continuation(model, inputs, **options))


@every_shape
def test_addresses_of_the_state_stay(shape):
    model, inputs = build(shape), prompts(PROMPT, 3)
    expected = continuation(model, inputs, max_new_tokens=NEW)
    cache = RecurrentGemmaCache(model.config, static=True)
    first = continuation(model, inputs, max_new_tokens=1, past_key_values=cache)
    before = addresses(cache)
    assert before
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
    ids = torch.cat((inputs["input_ids"], first), dim=1)
    now = {"input_ids": ids, "attention_mask": mask}
    rest = continuation(model, now, max_new_tokens=NEW - 1, past_key_values=cache)
    assert addresses(cache) == before
    assert torch.equal(torch.cat((first, rest), dim=1), expected)


def test_a_static_cache_from_embeddings():
    model, inputs = build(), prompts(PROMPT, 3)
    options = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None, "return_dict_in_generate": True}
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    outputs = model.generate(
        inputs_embeds=embeddings, attention_mask=inputs["attention_mask"], cache_implementation="static", **options
    )
    assert torch.equal(outputs.sequences, continuation(model, inputs, max_new_tokens=NEW))
    cache = getattr(outputs, CACHE_NAME)
    assert isinstance(cache, RecurrentGemmaCache)
    assert cache.get_seq_length() == PROMPT + NEW - 1


def test_prompt_in_chunks():
    model, inputs = build(), prompts(PROMPT, 3)
    options = {"max_new_tokens": NEW, "cache_implementation": "static", "prefill_chunk_size": 5}
    assert torch.equal(continuation(model, inputs, **options), continuation(model, inputs, max_new_tokens=NEW))


@pytest.mark.parametrize("implementation", ["quantized", "offloaded", "offloaded_static"])
def test_forms_that_do_not_exist_are_refused(implementation):
    with pytest.raises(ValueError, match=f"cache_implementation: expected .*'{implementation}'"):
        continuation(build(), prompts(PROMPT), cache_implementation=implementation)


def test_continuous_batching_is_refused():
    with pytest.raises(NotImplementedError, match="generate_batch"):
        build().generate_batch(inputs=[[3, 4, 5]])
