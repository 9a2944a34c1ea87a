"""generate(): with the cache, token for token what a full forward pass at every step gives."""

import pytest
import torch

from recurrent_gemma.modeling import RecurrentGemmaCache
from tests.modeling.models import tiny_config, tiny_model

MODES = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 20, "temperature": 0.7},
    "several sequences": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"do_sample": False, "num_beams": 3},
    "beam sampling": {"do_sample": True, "num_beams": 2, "num_return_sequences": 2},
    "in chunks": {"do_sample": False, "prefill_chunk_size": 5},
}


def left_padded(lengths, columns):
    ids, mask = (
        torch.zeros(len(lengths), columns, dtype=torch.long),
        torch.zeros(len(lengths), columns, dtype=torch.long),
    )
    for index, n in enumerate(lengths):
        ids[index, columns - n :], mask[index, columns - n :] = torch.randint(3, 97, (n,)), 1
    return ids, mask


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def fed(model, monkeypatch):
    """Columns of every forward pass of the model."""
    columns, forward = [], model.model.forward

    def counting(*args, input_ids=None, **kwargs):
        columns.append(input_ids.shape[1])
        return forward(*args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(model.model, "forward", counting)
    return columns


@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("padded", [False, True])
def test_cached_equals_uncached_and_reads_every_token_once(model, fed, mode, padded):
    ids, mask = left_padded((12, 3 if padded else 12), 12)
    options = {"attention_mask": mask, "max_new_tokens": 20, "eos_token_id": None, **MODES[mode]}
    torch.manual_seed(1)
    cached = model.generate(ids, **options)
    assert sum(fed) <= 12 + 20
    assert mode != "in chunks" or max(fed) <= 5
    options.pop("prefill_chunk_size", None)
    torch.manual_seed(1)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **options))


def test_each_padded_row_equals_its_solo_run_far_beyond_the_window(model):
    ids, mask = left_padded((12, 1, 7), 12)
    batch = model.generate(ids, attention_mask=mask, max_new_tokens=50, do_sample=False, eos_token_id=None)
    for index, n in enumerate((12, 1, 7)):
        solo = model.generate(ids[index : index + 1, 12 - n :], max_new_tokens=50, do_sample=False, eos_token_id=None)
        assert torch.equal(batch[index, 12 - n :], solo[0])


@pytest.mark.parametrize("block_types", [["recurrent"], ["attention"]])
def test_a_cache_of_one_kind_of_layers_resumes_where_it_is(block_types):
    model = tiny_model(tiny_config(block_types=block_types))
    ids, mask = left_padded((12,), 12)
    options = {"attention_mask": mask, "max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    cache = RecurrentGemmaCache(model.config)
    with torch.no_grad():
        model(ids[:, :9], past_key_values=cache)
    assert torch.equal(model.generate(ids, past_key_values=cache, **options), model.generate(ids, **options))
    assert cache.columns == 12 + 19


def test_a_cache_is_handed_back_and_resumes_with_the_full_ids(model, fed):
    ids, _ = left_padded((12,), 12)
    options = {"do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    whole = model.generate(ids, max_new_tokens=20, **options).sequences
    first = model.generate(ids, max_new_tokens=8, **options)
    assert isinstance(first.past_key_values, RecurrentGemmaCache)
    fed.clear()
    second = model.generate(first.sequences, max_new_tokens=12, past_key_values=first.past_key_values, **options)
    assert torch.equal(second.sequences, whole)
    assert sum(fed) <= 13


def test_only_the_new_ids_after_a_cache_are_refused_without_a_mask_that_covers_the_past(model):
    ids, _ = left_padded((12,), 12)
    options = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 6}
    cache = model.generate(ids, return_dict_in_generate=True, **options).past_key_values
    with pytest.raises(ValueError, match=r"past_key_values.*17"):
        model.generate(ids[:, :3], past_key_values=cache, **options)
    assert cache.get_seq_length() == 17


def test_embeddings_as_a_prompt_generate_what_their_ids_do(model):
    ids, _ = left_padded((9,), 9)
    options = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 15}
    expected = model.generate(ids, **options)[:, 9:]
    assert torch.equal(model.generate(inputs_embeds=model.get_input_embeddings()(ids), **options), expected)


def test_options_that_change_logits_or_stop_run(model):
    ids, _ = left_padded((5,), 5)
    options = {"max_new_tokens": 6, "do_sample": True, "eos_token_id": None}
    for extra in (
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 2},
        {"bad_words_ids": [[5], [6, 7]]},
        {"min_p": 0.1},
        {"typical_p": 0.9},
        {"guidance_scale": 1.5},
        {"output_scores": True, "output_logits": True, "output_hidden_states": True, "return_dict_in_generate": True},
    ):
        result = model.generate(ids, **options, **extra)
        sequences = result if isinstance(result, torch.Tensor) else result.sequences
        assert sequences.shape == (1, 11)


@pytest.mark.parametrize("pattern", [["recurrent"], ["attention"]])
def test_models_of_one_block_type_generate(pattern):
    model = tiny_model(tiny_config(block_types=pattern))
    ids, _ = left_padded((6,), 6)
    options = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 12}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, use_cache=False, **options))
