"""Generation in parts, and from other inputs than ids: what one call from the ids gives."""

import pytest
import torch
from transformers import GenerationMixin

from recurrent_gemma.modeling import RecurrentGemmaCache, RecurrentGemmaForCausalLM
from recurrent_gemma.modeling.compat import CACHE_NAME
from tests.modeling.generation.shapes import NEW, PROMPT, WINDOW, build, continuation, every_shape, prompts
from tests.tolerances import assert_close

EXACTLY = {"do_sample": False, "eos_token_id": None}


def longer(inputs, sequences):
    """Inputs of a call that goes on after ``sequences``."""
    mask = inputs["attention_mask"]
    new = sequences.shape[1] - mask.shape[1]
    return {"input_ids": sequences, "attention_mask": torch.nn.functional.pad(mask, (0, new), value=1)}


@every_shape
@pytest.mark.parametrize("parts", [(3, 17), (1, WINDOW, 12)])
def test_a_cache_that_was_handed_back_goes_on_where_it_stopped(shape, parts, count_columns):
    model, inputs = build(shape), prompts(PROMPT, 3)
    expected, fed = continuation(model, inputs), count_columns(model)
    now, cache = inputs, RecurrentGemmaCache(model.config)
    for new in parts:
        outputs = model.generate(
            **now, **EXACTLY, max_new_tokens=new, past_key_values=cache, return_dict_in_generate=True
        )
        assert getattr(outputs, CACHE_NAME) is cache
        now = longer(inputs, outputs.sequences)
    assert torch.equal(outputs.sequences[:, PROMPT:], expected)
    assert sum(fed) == PROMPT + NEW - 1


def test_a_turn_of_a_chat_goes_on_from_the_cache(count_columns):
    model, inputs, question = build(), prompts(PROMPT, 3), torch.randint(3, 97, (2, 5))
    cache = RecurrentGemmaCache(model.config)
    first = model.generate(**inputs, **EXACTLY, max_new_tokens=6, past_key_values=cache)
    second = longer(inputs, torch.cat((first, question), dim=1))
    expected, fed = continuation(model, second), count_columns(model)
    assert torch.equal(continuation(model, second, past_key_values=cache), expected)
    # The last token of the first turn, the question, and every new token but the last.
    assert sum(fed) == 1 + 5 + NEW - 1


@every_shape
@pytest.mark.parametrize("length", [1, 5, 2 * PROMPT])
def test_only_the_new_ids_go_on_with_a_mask_of_past_and_new_columns(shape, length, count_columns):
    model, inputs, question = build(shape), prompts(PROMPT, 3), torch.randint(3, 97, (2, length))
    cache = RecurrentGemmaCache(model.config)
    with torch.no_grad():
        model(**inputs, past_key_values=cache)
    whole = longer(inputs, torch.cat((inputs["input_ids"], question), dim=1))
    expected, fed = continuation(model, whole), count_columns(model)
    new = {"input_ids": question, "attention_mask": whole["attention_mask"]}
    # Up to 5.23, Transformers cuts such a mask for chunks at the wrong place, which raises.
    chunks = [{"prefill_chunk_size": 2}] if CACHE_NAME == "cache" else []
    for options in ({}, {"num_beams": 2}, *chunks):
        fed.clear()
        again = cache.fork(options.get("num_beams", 1))
        if options == {"num_beams": 2}:
            expected_now = continuation(model, whole, num_beams=2)
            fed.clear()
        else:
            expected_now = expected
        assert torch.equal(continuation(model, new, past_key_values=again, **options), expected_now)
        assert sum(fed) == length + NEW - 1


@pytest.mark.parametrize("length", [1, PROMPT - 1, PROMPT, PROMPT + 1, 3 * PROMPT])
@pytest.mark.parametrize("static", [False, True])
def test_only_the_new_ids_are_refused_without_such_a_mask(length, static):
    """However long they are: Transformers would cut off as many as the cache has seen, and read the rest."""
    model, inputs, question = build(), prompts(PROMPT), torch.randint(3, 97, (1, length))
    cache = RecurrentGemmaCache(model.config, static=static)
    with torch.no_grad():
        model(**inputs, past_key_values=cache)
    for options in ({}, {"attention_mask": torch.ones(1, length, dtype=torch.long)}):
        with pytest.raises(ValueError, match=r"input_ids: expected .* with an attention_mask of 12 \+"):
            model.generate(question, past_key_values=cache, **options, max_new_tokens=2)
    mask = torch.ones(1, PROMPT + length + 1, dtype=torch.long)
    with pytest.raises(ValueError, match=r"attention_mask: expected one column for each of the 12"):
        model.generate(question, past_key_values=cache, attention_mask=mask, max_new_tokens=2)
    assert cache.columns == PROMPT
    both = torch.cat((inputs["input_ids"], question), dim=1)
    expected = model.generate(both, **EXACTLY, max_new_tokens=3)
    assert torch.equal(model.generate(both, past_key_values=cache, **EXACTLY, max_new_tokens=3), expected)


def test_one_prefix_serves_several_continuations():
    model, prefix = build(), prompts(PROMPT)
    cache = RecurrentGemmaCache(model.config)
    with torch.no_grad():
        model(**prefix, past_key_values=cache)
    for _ in range(3):
        both = longer(prefix, torch.cat((prefix["input_ids"], torch.randint(3, 97, (1, 4))), dim=1))
        assert torch.equal(continuation(model, both, past_key_values=cache.clone()), continuation(model, both))
    assert cache.get_seq_length() == PROMPT


@every_shape
@pytest.mark.parametrize("beams", [1, 2])
def test_embeddings_with_or_without_their_ids(shape, beams, count_columns):
    model, inputs = build(shape), prompts(PROMPT, 3)
    expected, fed = continuation(model, inputs, num_beams=beams), count_columns(model)
    embeddings = {"inputs_embeds": model.get_input_embeddings()(inputs["input_ids"])}
    assert torch.equal(continuation(model, inputs, num_beams=beams, **embeddings), expected)
    assert sum(fed) < PROMPT + NEW
    options = {**EXACTLY, "max_new_tokens": NEW, "num_beams": beams, "attention_mask": inputs["attention_mask"]}
    assert torch.equal(model.generate(**embeddings, **options), expected)


def test_embeddings_of_no_token_are_used_in_place_of_the_ids():
    model, inputs = build(), prompts(PROMPT)
    noise = 4 * torch.randn(1, PROMPT, model.config.hidden_size)
    from_noise = continuation(model, inputs, inputs_embeds=noise)
    assert not torch.equal(from_noise, continuation(model, inputs))
    with torch.no_grad():
        embeddings = torch.cat((noise, model.get_input_embeddings()(from_noise[:, :-1])), dim=1)
        logits = model(inputs_embeds=embeddings, use_cache=False).logits
    assert torch.equal(logits[:, PROMPT - 1 :].argmax(-1), from_noise)


def test_embeddings_and_then_ids_from_one_cache():
    model, inputs = build(), prompts(PROMPT, 3)
    embeddings, cache = model.get_input_embeddings()(inputs["input_ids"]), RecurrentGemmaCache(model.config)
    mask = {"attention_mask": inputs["attention_mask"]}
    first = model.generate(inputs_embeds=embeddings, **mask, **EXACTLY, max_new_tokens=6, past_key_values=cache)
    second = longer(inputs, torch.cat((inputs["input_ids"], first), dim=1))
    rest = continuation(model, second, max_new_tokens=NEW - 6, past_key_values=cache)
    assert torch.equal(torch.cat((first, rest), dim=1), continuation(model, inputs))


def test_without_a_prompt_generation_starts_at_bos():
    model = build()
    bos = torch.full((1, 1), model.config.bos_token_id)
    expected = model.generate(bos, **EXACTLY, max_new_tokens=NEW)
    assert torch.equal(model.generate(**EXACTLY, max_new_tokens=NEW), expected)


@every_shape
def test_position_ids_may_be_given(shape):
    model, inputs = build(shape), prompts(PROMPT, 3)
    positions = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp_min(0)
    for beams in (1, 2):
        expected = continuation(model, inputs, num_beams=beams)
        assert torch.equal(continuation(model, inputs, num_beams=beams, position_ids=positions), expected)


def test_logits_to_keep_changes_no_token_and_keeps_the_last_columns():
    model, inputs = build(), prompts(PROMPT, 3)
    assert torch.equal(continuation(model, inputs, logits_to_keep=0), continuation(model, inputs))
    with torch.no_grad():
        whole = model(**inputs).logits
        for keep, columns in ((1, slice(-1, None)), (5, slice(-5, None)), (torch.tensor([0, 3]), [0, 3])):
            assert_close(model(**inputs, logits_to_keep=keep).logits, whole[:, columns], 1e-5, str(keep))


def test_arguments_of_a_caller_reach_forward():
    model, inputs = build(), prompts(PROMPT)
    prepared = model.prepare_inputs_for_generation(inputs["input_ids"], mine=3)
    assert prepared["mine"] == 3
    with pytest.raises(ValueError, match="mine"):
        model.generate(**inputs, mine=3)


def test_the_language_model_inherits_generation_itself():
    assert GenerationMixin in RecurrentGemmaForCausalLM.__bases__
    assert RecurrentGemmaForCausalLM.can_generate()
