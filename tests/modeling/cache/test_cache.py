"""The cache: batch operations against fresh runs of the same rows, constant size, independence, and what it refuses."""

import copy

import pytest
import torch
from transformers import Cache, DynamicCache

from recurrent_gemma.modeling import RecurrentGemmaCache
from tests.modeling.models import tiny_config, tiny_model
from tests.tolerances import SPLIT_EQUALS_WHOLE_LOGITS, assert_close


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def draw_ids(*shape):
    return torch.randint(0, 97, shape)


@torch.inference_mode()
def read(model, ids, cache=None, **options):
    cache = RecurrentGemmaCache(model.config) if cache is None else cache
    return model(ids, past_key_values=cache, **options).logits, cache


def ragged(model):
    """Three rows of 20, 12 and 4 tokens, padded on the left, in a cache; and their solo ids."""
    rows = [draw_ids(1, n) for n in (20, 12, 4)]
    ids, mask = draw_ids(3, 20), torch.zeros(3, 20, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, 20 - row.shape[1] :], mask[index, 20 - row.shape[1] :] = row[0], 1
    _, cache = read(model, ids, attention_mask=mask)
    return rows, cache


def expect_rows(model, cache, rows):
    """Every row of the cache goes on as a fresh run of that row's own ids does."""
    more = draw_ids(len(rows), 6)
    actual, _ = read(model, more, cache)
    for index, row in enumerate(rows):
        expected, _ = read(model, torch.cat((row, more[index : index + 1]), dim=1))
        assert_close(actual[index], expected[0, row.shape[1] :], SPLIT_EQUALS_WHOLE_LOGITS, f"row {index}")


def test_reorder_select_and_repeat_move_rows_with_all_their_state(model):
    rows, cache = ragged(model)
    expect_rows(model, cache, rows)
    rows, cache = ragged(model)
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    expect_rows(model, cache, [rows[2], rows[0], rows[0]])
    rows, cache = ragged(model)
    cache.batch_select_indices(torch.tensor([1, 2]))
    assert cache.batch_size == 2
    expect_rows(model, cache, rows[1:])
    rows, cache = ragged(model)
    cache.batch_repeat_interleave(2)
    assert cache.batch_size == 6
    expect_rows(model, cache, [row for row in rows for _ in range(2)])


def test_a_clone_is_independent_and_reset_forgets(model):
    ids = draw_ids(2, 15)
    _, cache = read(model, ids)
    for twin in (cache.clone(), copy.deepcopy(cache)):
        read(model, draw_ids(2, 9), twin)
        assert (twin.get_seq_length(), cache.get_seq_length()) == (24, 15)
    expect_rows(model, cache, [ids[:1], ids[1:]])
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.batch_size == -1 and not cache.has_previous_state()
    actual, _ = read(model, ids[:1], cache)
    assert torch.equal(actual, read(model, ids[:1])[0])


def test_a_clone_of_a_cache_with_a_graph_and_detach_cut_the_gradient():
    model = tiny_model().train()
    cache = RecurrentGemmaCache(model.config)
    model(draw_ids(1, 9), past_key_values=cache)
    assert all(t.requires_grad for layer in cache.layers for t in layer.load())
    clone = cache.clone()
    assert not any(t.requires_grad for layer in clone.layers for t in layer.load())
    assert cache.detach() is cache
    assert not any(t.requires_grad for layer in cache.layers for t in layer.load())


def test_its_size_is_constant_beyond_the_window_and_its_dtypes_are_right(model):
    sizes = []
    cache = RecurrentGemmaCache(model.config)
    for _ in range(6):
        read(model, draw_ids(2, 5), cache)
        sizes.append(sum(t.nbytes for layer in cache.layers for t in layer.load()))
    assert sizes[0] < sizes[1] == sizes[-1]
    half = tiny_model().to(torch.bfloat16)
    _, cache = read(half, draw_ids(1, 9))
    for layer, kind in zip(cache.layers, half.config.layer_types, strict=True):
        dtypes = {t.dtype for t in layer.load()}
        assert dtypes == ({torch.float32, torch.bfloat16} if kind == "linear_attention" else {torch.bfloat16})
    recurrent = cache.layers[0]
    assert recurrent.recurrent_states[0].dtype == torch.float32 and recurrent.conv_states[0].shape == (1, 3, 48)


def test_it_is_a_transformers_cache_with_the_attributes_their_tools_read(model):
    cache = RecurrentGemmaCache(model.config)
    assert isinstance(cache, Cache) and len(cache) == model.config.num_hidden_layers
    assert not cache.is_compileable and cache.is_linear == [True, True, False, True, True]
    for layer_idx in range(len(cache)):
        assert cache.get_seq_length(layer_idx) == 0
    read(model, draw_ids(2, 11), cache)
    assert [cache.get_seq_length(i) for i in range(len(cache))] == [11] * len(cache)
    assert cache.get_mask_sizes(3, 2) == (14, 0) and cache.get_max_length() == -1
    attention = cache.layers[2]
    assert attention.keys.shape == attention.values.shape == (2, 1, 7, 8) and attention.get_seq_length() == 11
    for layer in cache.layers:
        assert layer.get_seq_length() == 11 and layer.get_mask_sizes(3) == (14, 0) and layer.get_max_length() == -1
    assert cache.to("cpu") is cache and "RecurrentGemmaCache" in repr(cache)


@pytest.mark.parametrize("static", [False, True])
def test_it_moves_as_a_whole(model, static):
    cache = RecurrentGemmaCache(model.config, static=static)
    if not static:
        cache.activate_past_recording()
    read(model, draw_ids(2, 11), cache)
    assert cache.to("meta") is cache
    assert all(t.is_meta for t in cache.tensors().values()) and len(cache.tensors()) == 2 + 2 * len(cache)
    assert all(t.is_meta for t in cache._progress.tensors()) and len(cache._progress.tensors()) == 2 + static
    if not static:
        trails = cache._recording
        assert trails.length == 11 and all(t.is_meta for t in trails.columns)
        assert all(t.is_meta for trail in trails.trails for t in (*trail.base, trail[1], trail[2]))


def test_what_it_cannot_do_raises_and_says_so(model):
    _, cache = read(model, draw_ids(1, 9))
    with pytest.raises(TypeError, match="RecurrentGemmaConfig"):
        RecurrentGemmaCache({})
    with pytest.raises(TypeError, match="filled by RecurrentGemmaModel"):
        cache.update(torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, 1, 8), 2)
    with pytest.raises(TypeError, match="RecurrentGemmaCache"):
        model(draw_ids(1, 3), past_key_values=DynamicCache(config=model.config))


@pytest.mark.parametrize(
    "field", [{"attention_window_size": 9}, {"lru_width": 64}, {"conv1d_width": 3}, {"block_types": ["recurrent"]}]
)
def test_a_cache_of_another_model_or_batch_size_is_refused_unchanged(model, field):
    other = tiny_model(tiny_config(**field))
    _, cache = read(other, draw_ids(2, 5))
    before = [t.clone() for layer in cache.layers for t in layer.load()]
    with pytest.raises(ValueError, match="another model"):
        model(draw_ids(2, 3), past_key_values=cache)
    with pytest.raises(ValueError, match="rows"):
        other(draw_ids(3, 3), past_key_values=cache)
    after = [t for layer in cache.layers for t in layer.load()]
    assert cache.get_seq_length() == 5 and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
