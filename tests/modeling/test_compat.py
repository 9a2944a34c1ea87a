"""Both names of the cache work with every supported release of Transformers, and two caches at once are refused."""

import pytest
import torch

from recurrent_gemma import RecurrentGemmaCache
from recurrent_gemma.modeling.compat import CACHE_NAME
from tests.modeling.models import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def draw_ids(*shape):
    return torch.randint(3, 97, shape)


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
@torch.no_grad()
def test_both_names_extend_the_cache(model, name):
    ids, cache = draw_ids(2, 9), RecurrentGemmaCache(model.config)
    outputs = model(ids, **{name: cache})
    assert outputs[CACHE_NAME] is cache and cache.columns == 9
    assert model.model(ids, **{name: cache})[CACHE_NAME] is cache and cache.columns == 18


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_both_names_in_generate(model, name):
    ids, cache = draw_ids(1, 9), RecurrentGemmaCache(model.config)
    sequences = model.generate(ids, max_new_tokens=5, do_sample=False, **{name: cache})
    assert cache.columns == 13
    assert torch.equal(sequences, model.generate(ids, max_new_tokens=5, do_sample=False))


def test_two_different_caches_are_refused(model):
    ids, first, second = draw_ids(1, 9), RecurrentGemmaCache(model.config), RecurrentGemmaCache(model.config)
    for call in (model, model.model, model.generate):
        with pytest.raises(ValueError, match="past_key_values, cache: expected one cache, got two"):
            call(ids, past_key_values=first, cache=second)
    assert first.columns == second.columns == 0
    model(ids, past_key_values=first, cache=first)
    assert first.columns == 9
