"""Taking tokens back: after crop() a cache is what it was, whatever was read in whichever pieces."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recurrent_gemma.modeling import RecurrentGemmaCache
from tests.modeling.models import CONFIGS, WINDOW, tiny_config, tiny_model
from tests.tolerances import SPLIT_EQUALS_WHOLE_LOGITS, assert_close, assert_routes_agree

every_config = pytest.mark.parametrize("name", list(CONFIGS))


def build(name="shipped pattern"):
    return tiny_model(tiny_config(**CONFIGS[name]))


def draw_ids(*shape):
    return torch.randint(3, 97, shape)


def recording(model, limit=64):
    cache = RecurrentGemmaCache(model.config)
    cache.record_limit = limit
    cache.activate_past_recording()
    return cache


@torch.no_grad()
def read(model, ids, cache, cuts=(), mask=None, positions=None):
    ends = [*sorted({cut for cut in cuts if 0 < cut < ids.shape[1]}), ids.shape[1]]
    past, begin, pieces = cache.columns, 0, []
    for end in ends:
        part = None if mask is None else mask[:, : past + end]
        places = None if positions is None else positions[:, begin:end]
        outputs = model(ids[:, begin:end], attention_mask=part, position_ids=places, past_key_values=cache)
        pieces.append(outputs.logits)
        begin = end
    return torch.cat(pieces, dim=1)


def same(first, second):
    pairs = zip(first.tensors().items(), second.tensors().items(), strict=True)
    return first.columns == second.columns and all(a == b and torch.equal(s, t) for (a, s), (b, t) in pairs)


@every_config
@pytest.mark.parametrize(
    ("dtype", "prompt"),
    [*((torch.float32, n) for n in (1, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW)), (torch.bfloat16, 3 * WINDOW)],
)
def test_a_cropped_cache_goes_on_as_if_nothing_had_been_read(name, dtype, prompt):
    model = build(name).to(dtype)
    ids, other = draw_ids(2, prompt + 9), draw_ids(2, 12)
    for removed in (0, 4, 9):
        kept = prompt + 9 - removed
        for cuts in ((), (prompt, prompt + 1, prompt + 5)):
            cache = recording(model)
            read(model, ids, cache, cuts)
            cache.crop(torch.tensor(-removed) if removed == 4 else -removed)
            assert cache.columns == kept and cache.next_position.tolist() == [kept] * 2
            assert torch.equal(cache.last_ids, ids[:, :kept][:, -8:])
            actual = read(model, other, cache, (1, 3))
            with torch.no_grad():
                expected = model(torch.cat((ids[:, :kept], other), dim=1), use_cache=False).logits[:, kept:]
            what = f"{name}: {removed} of {cuts} taken back"
            assert_routes_agree(actual, expected, model.config.num_hidden_layers, what)


@every_config
def test_pads_and_documents_among_the_columns_taken_back(name):
    model, columns = build(name), 26
    ids, mask = draw_ids(3, columns), torch.ones(3, columns, dtype=torch.long)
    mask[0, :4], mask[1, 20:23], mask[2, [9, 12, 21, 24, 25]] = 0, 0, 0
    positions = torch.cat([torch.arange(n) for n in (10, 12, 4)])[None]
    for removed in (1, 3, 5, 6):
        for options in ({"mask": mask}, {"positions": positions}):
            cache, plain = recording(model), RecurrentGemmaCache(model.config)
            read(model, ids, cache, (8, 19, 20, 23), **options)
            cache.crop(-removed)
            kept = columns - removed
            cut = {name: value[:, :kept] for name, value in options.items()}
            read(model, ids[:, :kept], plain, (8, 19), **cut)
            assert torch.equal(cache.next_position, plain.next_position)
            more = draw_ids(3, 5)
            if "mask" in options:
                cut["mask"] = torch.cat((cut["mask"], torch.ones(3, 5, dtype=torch.long)), dim=1)
            else:
                cut["positions"] = plain.next_position[:, None] + torch.arange(5)
            actual, expected = (read(model, more, c, (2,), **cut) for c in (cache, plain))
            assert_close(actual, expected, SPLIT_EQUALS_WHOLE_LOGITS, f"{name}: {removed} taken back")


def test_rounds_of_drafts_as_assisted_generation_reads_them():
    model, ids = build(), draw_ids(1, 60)
    cache, accepted = recording(model), 20
    read(model, torch.cat((ids[:, :20], draw_ids(1, 5)), dim=1), cache)
    cache.crop(-5)
    while accepted < 55:
        right = accepted % 4
        drafts = torch.cat((ids[:, accepted : accepted + 1 + right], draw_ids(1, 4)), dim=1)
        read(model, drafts, cache)
        cache.crop(-4)
        accepted += 1 + right
        assert cache.columns == accepted
        assert cache._recording.length == 0 and cache._recording.trails == []
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits[:, accepted:]
    assert_close(read(model, ids[:, accepted:], cache), expected, SPLIT_EQUALS_WHOLE_LOGITS, "after the rounds")


def test_a_prompt_is_recorded_to_its_limit_and_what_follows_as_a_whole():
    model = build()
    cache = recording(model, limit=6)
    read(model, draw_ids(1, 100), cache)
    assert cache._recording.length == 6
    assert [trail[1].shape[1 if trail[1].ndim == 3 else 2] for trail in cache._recording.trails] == [6] * 5
    clone = cache.clone()
    with pytest.raises(ValueError, match=r"tokens_to_remove: expected at most the 6 columns recorded .*, got 7"):
        cache.crop(-7)
    cache.crop(-6)
    assert cache.columns == 94
    # A later forward pass is recorded as a whole, even where it is longer than the limit.
    read(model, draw_ids(1, 15), clone)
    clone.crop(-15)
    assert clone.columns == 100
    # Single tokens since the last crop are kept to the limit.
    for _ in range(20):
        read(model, draw_ids(1, 1), clone)
    assert clone._recording.length == 6
    clone.crop(-6)
    assert clone.columns == 114


def test_a_reset_cache_records_its_next_prompt_to_the_limit():
    model = build()
    cache = recording(model, limit=6)
    read(model, draw_ids(1, 10), cache)
    cache.reset()
    cache.activate_past_recording()
    assert cache._recording.length == 0
    read(model, draw_ids(1, 20), cache)
    assert cache._recording.length == 6


def test_everything_can_be_taken_back():
    model, ids = build(), draw_ids(2, 9)
    cache = recording(model)
    read(model, ids, cache, (4,))
    cache.crop(-9)
    assert cache.columns == 0 and cache.batch_size == -1
    fresh = RecurrentGemmaCache(model.config)
    assert torch.equal(read(model, ids, cache, (4,)), read(model, ids, fresh, (4,)))
    assert same(cache, fresh)


def test_what_cannot_be_taken_back_raises_and_changes_nothing():
    model = build()
    cache = RecurrentGemmaCache(model.config)
    read(model, draw_ids(1, 9), cache)
    before = cache.clone()
    cache.crop(0)
    with pytest.raises(ValueError, match=r"expected at most the 0 columns recorded .*, got 1; call activate_past_rec"):
        cache.crop(-1)
    with pytest.raises(ValueError, match="expected 0 or a negative number"):
        cache.crop(3)
    with pytest.raises(TypeError, match="cropped together"):
        cache.layers[0].crop(-1)
    assert same(cache, before) and cache.is_croppable
    cache.activate_past_recording()
    read(model, draw_ids(1, 3), cache)
    cache.crop(-2)
    with pytest.raises(ValueError, match="at most the 0 columns recorded since the last crop"):
        cache.crop(-1)
    assert cache.columns == 10


def test_recording_does_not_change_what_is_computed():
    model, ids = build(), draw_ids(2, 30)
    plain = RecurrentGemmaCache(model.config)
    cache = recording(model)
    assert torch.equal(read(model, ids, cache, (11, 12)), read(model, ids, plain, (11, 12)))
    assert same(cache, plain)


def test_batch_operations_move_what_is_recorded():
    model, ids, other = build(), draw_ids(3, 20), draw_ids(2, 6)
    cache = recording(model)
    read(model, ids, cache, (15,))
    cache.reorder_cache(torch.tensor([2, 2, 1]))
    cache.batch_select_indices(torch.tensor([2, 0]))
    clone = cache.clone()
    clone.crop(-3)
    read(model, other, cache)
    cache.crop(-8)
    assert (cache.columns, clone.columns) == (18, 17)
    for kept, actual in ((18, read(model, other, cache)), (17, read(model, other, clone))):
        with torch.no_grad():
            expected = model(torch.cat((ids[[1, 2], :kept], other), dim=1), use_cache=False).logits[:, kept:]
        assert_close(actual, expected, SPLIT_EQUALS_WHOLE_LOGITS, f"{kept} kept")


@settings(max_examples=60)
@given(data=st.data())
def test_any_order_of_operations_equals_an_uncached_pass(data, tmp_path_factory):
    """Extend, crop, reorder, select, repeat, clone, save and load, in any order, against the rows they stand for."""
    name = data.draw(st.sampled_from(list(CONFIGS)))
    torch.manual_seed(data.draw(st.integers(0, 10**6)))
    model, rows = build(name), [torch.zeros(0, dtype=torch.long)] * data.draw(st.integers(1, 3))
    columns, cache = 0, recording(model, limit=data.draw(st.sampled_from([1, 5, 64])))
    mask = torch.ones(len(rows), 0, dtype=torch.long)
    recorded = []  # per column that can be taken back: the rows' ids before it
    for _ in range(data.draw(st.integers(1, 8))):
        operation = data.draw(st.sampled_from("extend extend crop reorder select repeat clone save".split()))
        batch = len(rows)
        if operation == "extend":
            length = data.draw(st.integers(1, 2 * WINDOW))
            new, ids = (torch.rand(batch, length) < 0.8).long(), draw_ids(batch, length)
            mask = torch.cat((mask, new), dim=1)
            with torch.no_grad():
                logits = model(ids, attention_mask=mask, past_key_values=cache).logits
            for column in range(length):
                recorded.append((list(rows), mask[:, : columns + column]))
                read_now = (ids[i, column : column + int(new[i, column])] for i in range(batch))
                rows = [torch.cat(parts) for parts in zip(rows, read_now, strict=True)]
            columns += length
            with torch.no_grad():
                for i, row in enumerate(rows):
                    count = int(new[i].sum())
                    if count:
                        solo = model(row[None], use_cache=False).logits[0, -count:]
                        assert_close(logits[i][new[i] == 1], solo, SPLIT_EQUALS_WHOLE_LOGITS, f"{name}, row {i}")
        elif operation == "crop":
            most = min(len(recorded), cache._recording.length)
            removed = data.draw(st.integers(0, most))
            cache.crop(-removed)
            if removed:
                rows, mask = recorded[-removed]
                columns -= removed
            recorded = []
        elif operation in ("reorder", "select", "repeat"):
            if columns == 0 or (operation == "repeat" and batch > 3):
                continue
            if operation == "reorder":
                index = torch.tensor(data.draw(st.lists(st.integers(0, batch - 1), min_size=batch, max_size=batch)))
                cache.reorder_cache(index)
            elif operation == "select":
                index = torch.tensor(data.draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=batch)))
                cache.batch_select_indices(index)
            else:
                index = torch.arange(batch).repeat_interleave(2)
                cache.batch_repeat_interleave(2)
            rows, mask = [rows[i] for i in index], mask[index]
            recorded = [([before[i] for i in index], seen[index]) for before, seen in recorded]
        elif operation == "clone":
            cache = cache.clone()
        else:
            path = tmp_path_factory.getbasetemp() / "state.safetensors"
            cache.save(path)
            cache = RecurrentGemmaCache.load(path, model.config)
            cache.activate_past_recording()
            recorded = []
        assert cache.columns == columns and cache.batch_size in (-1, len(rows))
        if cache.next_position is not None:
            assert cache.next_position.tolist() == [len(row) for row in rows]
