"""Rows are independent of how they are fed: split, interleaved, padded, packed and batched rows equal their solo runs.

Logits to 2e-5 and gradients to 1e-4 of the largest, across shapes of the family and around the attention window.
"""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.generic import find_labels

from recurrent_gemma.modeling import RecurrentGemmaCache
from tests.modeling.models import CONFIGS, WINDOW, tiny_config, tiny_model
from tests.tolerances import (
    ROWS_EQUAL_SOLO_GRADIENTS,
    ROWS_EQUAL_SOLO_LOGITS,
    SPLIT_EQUALS_WHOLE_LOGITS,
    assert_close,
    assert_close_by_max,
)

every_config = pytest.mark.parametrize("name", list(CONFIGS))


def build(name):
    return tiny_model(tiny_config(**CONFIGS[name]))


def draw_ids(*shape):
    return torch.randint(0, 97, shape)


@torch.inference_mode()
def logits_of(model, ids, **options):
    return model(ids, use_cache=False, **options).logits


@torch.inference_mode()
def logits_in_pieces(model, ids, cuts, mask=None, positions=None):
    cache, pieces = RecurrentGemmaCache(model.config), []
    for begin, end in itertools.pairwise(cuts):
        outputs = model(
            ids[:, begin:end],
            attention_mask=None if mask is None else mask[:, :end],
            position_ids=None if positions is None else positions[:, begin:end],
            past_key_values=cache,
        )
        assert outputs.past_key_values is cache and cache.get_seq_length() == end
        pieces.append(outputs.logits)
    return torch.cat(pieces, dim=1), cache


def states(cache, row=slice(None)):
    """Every tensor of the state, keys and values cut to the columns that hold tokens."""
    live = None if cache.next_position is None else int(cache.next_position[row].min())
    for layer in cache.layers:
        for index, tensor in enumerate(layer.load()):
            is_attention = tensor.ndim == 4
            yield tensor[row][..., -live:, :] if is_attention and live < tensor.shape[2] else tensor[row], index


@every_config
@pytest.mark.parametrize("length", [1, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW, 40])
def test_any_split_equals_one_pass(name, length):
    model, ids = build(name), draw_ids(2, length)
    whole = logits_of(model, ids)
    _, expected = logits_in_pieces(model, ids, (0, length))
    splits = {(0, length), tuple(range(length + 1)), (0, 1, length), (0, length // 2, length), (0, length - 1, length)}
    splits |= {(0, WINDOW, length), (0, WINDOW + 1, length)} if length > WINDOW + 1 else set()
    for cuts in splits:
        cuts = tuple(dict.fromkeys(cuts))
        if len(cuts) < 2:
            continue
        pieces, cache = logits_in_pieces(model, ids, cuts)
        assert_close(pieces, whole, SPLIT_EQUALS_WHOLE_LOGITS, f"split at {cuts[:5]}")
        for (actual, _), (wanted, index) in zip(states(cache), states(expected), strict=True):
            if wanted.numel():
                assert_close(actual, wanted, SPLIT_EQUALS_WHOLE_LOGITS, f"state {index}")


@every_config
@pytest.mark.parametrize("side", ["left", "right", "middle"])
def test_padded_rows_equal_their_solo_runs(name, side):
    model = build(name)
    lengths, columns = (23, 9, 1, 16), 27
    rows = [draw_ids(1, n) for n in lengths]
    ids, mask = draw_ids(len(lengths), columns), torch.zeros(len(lengths), columns, dtype=torch.long)
    for index, row in enumerate(rows):
        n = row.shape[1]
        places = {
            "left": range(columns - n, columns),
            "right": range(n),
            "middle": torch.randperm(columns)[:n].sort()[0],
        }
        chosen = torch.as_tensor(list(places[side]))
        ids[index, chosen], mask[index, chosen] = row[0], 1
    batch = logits_of(model, ids, attention_mask=mask)
    in_pieces, cache = logits_in_pieces(model, ids, (0, 5, 6, 20, columns), mask=mask)
    for index, row in enumerate(rows):
        solo = logits_of(model, row)[0]
        valid = mask[index].bool()
        assert_close(batch[index, valid], solo, ROWS_EQUAL_SOLO_LOGITS, f"row {index}")
        assert_close(in_pieces[index, valid], solo, ROWS_EQUAL_SOLO_LOGITS, f"row {index} in pieces")
        _, alone = logits_in_pieces(model, row, (0, row.shape[1]))
        assert cache.next_position[index] == alone.next_position[0] == row.shape[1]
        for (actual, _), (wanted, kind) in zip(states(cache, [index]), states(alone), strict=True):
            if wanted.numel():
                assert_close(actual, wanted, ROWS_EQUAL_SOLO_LOGITS, f"row {index}, state {kind}")


@every_config
def test_packed_rows_equal_their_solo_runs_by_every_description(name):
    model, lengths = build(name), (1, 12, 2, 3 * WINDOW, 5)
    documents = [draw_ids(1, n) for n in lengths]
    ids = torch.cat(documents, dim=1)
    ends = [0, *itertools.accumulate(lengths)]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    numbers = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None]
    descriptions = {
        "position_ids": {"position_ids": positions},
        "cu_seq_lens_q": {"cu_seq_lens_q": torch.tensor(ends, dtype=torch.int32)},
        "seq_idx": {"seq_idx": numbers.int()},
        "all": {
            "position_ids": positions,
            "cu_seq_lens_q": torch.tensor(ends),
            "cu_seq_lens_k": torch.tensor(ends),
            "max_length_q": max(lengths),
            "max_length_k": max(lengths),
            "seq_idx": numbers,
        },
    }
    solo = torch.cat([logits_of(model, document) for document in documents], dim=1)
    for what, options in descriptions.items():
        assert_close(logits_of(model, ids, **options), solo, ROWS_EQUAL_SOLO_LOGITS, what)
    total = ids.shape[1]
    for cuts in ((0, 1, total), (0, 14, 15, 20, total), tuple(range(total + 1))):
        pieces, _ = logits_in_pieces(model, ids, cuts, positions=positions)
        assert_close(pieces, solo, ROWS_EQUAL_SOLO_LOGITS, f"packed, split at {cuts[:4]}")


@every_config
def test_gradients_of_packed_and_padded_rows_equal_those_of_separate_rows(name):
    model, lengths = build(name).train(), (1, 9, 2, 24)
    documents = [draw_ids(1, n) for n in lengths]
    total = sum(lengths)

    def gradients(run):
        model.zero_grad()
        run()
        return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}

    weights = [torch.randn(1, n, 97) for n in lengths]
    separate = gradients(
        lambda: sum((model(d).logits * w).sum() for d, w in zip(documents, weights, strict=True)).backward()
    )
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    packed = gradients(
        lambda: (model(torch.cat(documents, 1), position_ids=positions).logits * torch.cat(weights, 1)).sum().backward()
    )
    ids, mask, weight = draw_ids(4, 26), torch.zeros(4, 26), torch.zeros(4, 26, 97)
    for index, (n, offset) in enumerate(zip(lengths, (25, 3, 0, 2), strict=True)):
        span = slice(offset, offset + n)
        ids[index, span], mask[index, span], weight[index, span] = documents[index][0], 1, weights[index][0]
    padded = gradients(lambda: (model(ids, attention_mask=mask).logits * weight).sum().backward())
    assert total == positions.shape[1] and separate.keys() == packed.keys() == padded.keys()
    for key, expected in separate.items():
        assert_close_by_max(packed[key], expected, ROWS_EQUAL_SOLO_GRADIENTS, f"packed {key}")
        assert_close_by_max(padded[key], expected, ROWS_EQUAL_SOLO_GRADIENTS, f"padded {key}")


def test_gradient_flows_through_a_cache_as_through_one_pass():
    model, ids = build("shipped pattern").train(), draw_ids(2, 30)
    weight = torch.randn(2, 30, 97)
    (model(ids).logits * weight).sum().backward()
    expected = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    cache, loss = RecurrentGemmaCache(model.config), 0.0
    for begin, end in ((0, 11), (11, 12), (12, 30)):
        logits = model(ids[:, begin:end], past_key_values=cache).logits
        loss = loss + (logits * weight[:, begin:end]).sum()
    loss.backward()
    for key, gradient in expected.items():
        assert_close_by_max(model.get_parameter(key).grad, gradient, ROWS_EQUAL_SOLO_GRADIENTS, key)


def test_labels_that_are_shifted_already_give_the_same_loss_and_replace_the_others():
    model, ids = build("shipped pattern"), draw_ids(2, 12)
    shifted = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    expected = model(ids, labels=ids).loss
    assert torch.equal(model(ids, shift_labels=shifted).loss, expected)
    assert torch.equal(model(ids, labels=ids.flip(1), shift_labels=shifted).loss, expected)
    halved = model(ids, shift_labels=shifted, num_items_in_batch=2 * 22).loss
    assert_close(halved, expected / 2, 1e-6, "loss")


def test_the_trainer_finds_labels_and_no_other_input_that_every_batch_must_have():
    assert find_labels(build("shipped pattern").__class__) == ["labels"]


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")  # new name in 5.2x
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant):
    model, ids = build("shipped pattern").train(), draw_ids(2, 30)
    model(ids, labels=ids).loss.backward()
    expected = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    if use_reentrant:
        model.enable_input_require_grads()
    model(ids, labels=ids).loss.backward()
    for key, gradient in expected.items():
        assert_close_by_max(model.get_parameter(key).grad, gradient, ROWS_EQUAL_SOLO_GRADIENTS, key)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")  # before Transformers 5.2x
def test_gradient_checkpointing_keeps_the_gradient_through_a_cache_or_raises():
    model, ids = build("shipped pattern").train(), draw_ids(2, 30)

    def loss_of_the_second_part():
        cache = RecurrentGemmaCache(model.config)
        model(ids[:, :11], past_key_values=cache)
        return model(ids[:, 11:], labels=ids[:, 11:], past_key_values=cache).loss

    loss_of_the_second_part().backward()
    expected = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    loss_of_the_second_part().backward()
    for key, gradient in expected.items():
        assert_close_by_max(model.get_parameter(key).grad, gradient, ROWS_EQUAL_SOLO_GRADIENTS, key)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(ValueError, match="use_reentrant=False"):
        loss_of_the_second_part()
    with torch.no_grad():
        loss_of_the_second_part()


def test_interleaved_conversations_on_one_model_are_independent():
    model = build("shipped pattern")
    talks = [draw_ids(2, 30), draw_ids(1, 25), draw_ids(3, 33)]
    alone = [logits_of(model, ids) for ids in talks]
    caches, pieces = [RecurrentGemmaCache(model.config) for _ in talks], [[] for _ in talks]
    with torch.inference_mode():
        for begin in range(0, 33, 4):
            for ids, cache, piece in zip(talks, caches, pieces, strict=True):
                if begin < ids.shape[1]:
                    piece.append(model(ids[:, begin : begin + 4], past_key_values=cache).logits)
    for piece, expected in zip(pieces, alone, strict=True):
        assert_close(torch.cat(piece, dim=1), expected, SPLIT_EQUALS_WHOLE_LOGITS, "interleaved")


def test_rows_do_not_depend_on_their_neighbours():
    model, ids = build("shipped pattern"), draw_ids(4, 25)
    together = logits_of(model, ids)
    for index in range(4):
        assert_close(together[index], logits_of(model, ids[index : index + 1])[0], ROWS_EQUAL_SOLO_LOGITS, f"{index}")


def test_embeddings_instead_of_ids_and_eager_instead_of_sdpa_change_nothing():
    model, ids = build("shipped pattern"), draw_ids(2, 25)
    mask = (torch.rand(2, 25) < 0.7).long()
    expected = logits_of(model, ids, attention_mask=mask)
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(logits_of(model, None, inputs_embeds=embeds, attention_mask=mask), expected)
    model.set_attn_implementation("eager")
    eager = logits_of(model, ids, attention_mask=mask)
    assert_close(eager[mask.bool()], expected[mask.bool()], ROWS_EQUAL_SOLO_LOGITS, "eager")


@settings(max_examples=40)
@given(data=st.data())
def test_random_splits_pads_and_documents_equal_solo_documents(data):
    """One row of documents and pads in any order, cut anywhere, against each document by itself."""
    name = data.draw(st.sampled_from(list(CONFIGS)))
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    columns = sum(lengths) + data.draw(st.integers(0, 8))
    seed = data.draw(st.integers(0, 10**6))
    cuts = sorted({0, columns, *data.draw(st.lists(st.integers(1, columns), max_size=5))})
    torch.manual_seed(seed)
    model = build(name)
    valid = torch.zeros(columns, dtype=torch.bool)
    valid[torch.randperm(columns)[: sum(lengths)]] = True
    positions = torch.zeros(columns, dtype=torch.long)
    positions[valid] = torch.cat([torch.arange(n) for n in lengths])
    ids = draw_ids(1, columns)
    pieces, _ = logits_in_pieces(model, ids, cuts, mask=valid[None].long(), positions=positions[None])
    documents = ids[:, valid].split(lengths, dim=1)
    solo = torch.cat([logits_of(model, document) for document in documents], dim=1)
    assert_close(pieces[:, valid], solo, ROWS_EQUAL_SOLO_LOGITS, f"{name}, {lengths}, cuts {cuts}")
