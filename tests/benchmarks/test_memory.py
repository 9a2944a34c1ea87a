"""The memory case sees what a cache holds, and a growing one as growing."""

import pytest
import torch

import recurrent_gemma
from benchmarks.memory import cache_bytes, generation_memory, model_for_memory
from benchmarks.models import SIZES, build_ours, random_ids
from recurrent_gemma.configuration.state_size import state_bytes
from recurrent_gemma.modeling import RecurrentGemmaCache
from tests.tolerances import SPLIT_EQUALS_WHOLE_LOGITS

SIZE = SIZES["tiny"]
WINDOW = SIZE.attention_window_size


def test_cache_bytes_are_the_states_and_the_next_position():
    model = build_ours(SIZE)
    cache = RecurrentGemmaCache(model.config)
    assert cache_bytes(cache) == 0
    with torch.inference_mode():
        model(input_ids=random_ids(SIZE, WINDOW), past_key_values=cache)
    assert cache_bytes(cache) == state_bytes(model.config, length=WINDOW).total + torch.int64.itemsize


def test_cache_bytes_count_the_whole_of_what_a_view_keeps_alive():
    model = build_ours(SIZE)
    cache = RecurrentGemmaCache(model.config)
    with torch.inference_mode():
        model(input_ids=random_ids(SIZE, 4), past_key_values=cache)
    before = cache_bytes(cache)
    layer = cache.layers[0]
    conv, rg_lru = layer.load()
    large = torch.zeros(1000, *rg_lru.shape)
    layer.store(type(layer.load())(conv, large[0]))
    assert cache_bytes(cache) == before + 999 * rg_lru.nbytes


def test_samples_lie_where_asked_and_the_cache_stays_flat_behind_the_window():
    model = build_ours(SIZE)
    found = generation_memory(model, "tiny", tokens=3 * WINDOW + 17, every=WINDOW + 4)
    assert found.model == "tiny"
    assert [sample.tokens for sample in found.samples] == [WINDOW + 4, 2 * (WINDOW + 4), 3 * (WINDOW + 4)]
    assert all(sample.rss_bytes > 0 and sample.seconds_per_token > 0 for sample in found.samples)
    assert found.cache_slope == 0
    assert 0 < found.reread_difference <= SPLIT_EQUALS_WHOLE_LOGITS
    # The window's keys and values may be a view of them and the newest column.
    column = 2 * 4 * model.config.head_dim
    state = state_bytes(model.config).total + torch.int64.itemsize
    assert state <= found.samples[-1].cache_bytes <= state + column


def test_a_growing_cache_has_a_slope():
    model = build_ours(SIZE)
    found = generation_memory(model, "tiny", tokens=WINDOW, every=2)
    column = 2 * 4 * model.config.head_dim
    assert found.cache_slope == pytest.approx(column)


@pytest.mark.parametrize(("tokens", "every"), [(1, 1), (10, 6), (10, 0)])
def test_too_few_samples_are_refused(tokens: int, every: int):
    with pytest.raises(ValueError, match=f"got tokens={tokens}, every={every}"):
        generation_memory(build_ours(SIZE), "tiny", tokens=tokens, every=every)


def test_the_embedded_model_is_used_where_there_is_one(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(recurrent_gemma, "demo_path", lambda: tmp_path)
    model, name = model_for_memory("demo")
    assert (name, model.config.hidden_size) == ("random weights, size demo", SIZES["demo"].hidden_size)

    saved = build_ours(SIZE, seed=3)
    saved.to(torch.bfloat16).save_pretrained(tmp_path)
    model, name = model_for_memory("demo")
    assert "embedded" in name
    assert model.dtype == torch.float32
    assert torch.equal(model.lm_head.weight, saved.lm_head.weight.float())
    assert "random" in model_for_memory("tiny")[1]
