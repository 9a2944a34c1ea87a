"""Losses read in chunks are those of one pass, resets are separate runs, and excerpts hold what they say."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recurrent_gemma.evaluation.long_context import excerpts, token_losses
from recurrent_gemma.evaluation.long_context.reading import chunk_spans
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM
from recurrent_gemma.modeling.layers import RecurrentGemmaAttention
from tests.modeling.models import WINDOW, tiny_config, tiny_model
from tests.tolerances import SPLIT_EQUALS_WHOLE_LOGITS, assert_close, logits_tolerance

IDS = torch.randint(1, 97, (3, 6 * WINDOW + 4), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> RecurrentGemmaForCausalLM:
    return tiny_model()


@torch.no_grad()
def one_pass(model: RecurrentGemmaForCausalLM, ids: Tensor) -> Tensor:
    """Losses (B, L) without a cache, by a route of their own."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits.double()
    return -logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]


def tolerance(model: RecurrentGemmaForCausalLM) -> float:
    # A loss is a difference of two functions of the logits, neither steeper than the logits themselves.
    with torch.no_grad():
        return 2 * logits_tolerance(SPLIT_EQUALS_WHOLE_LOGITS, model(input_ids=IDS, use_cache=False).logits)


@pytest.mark.parametrize("chunk_size", [1, 5, WINDOW, 1000])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_chunks_equal_one_pass(model: RecurrentGemmaForCausalLM, chunk_size: int, batch_size: int):
    read = token_losses(model, IDS, chunk_size=chunk_size, batch_size=batch_size)
    assert read.dtype == torch.float32 and read.shape == (3, IDS.shape[1] - 1)
    assert_close(read, one_pass(model, IDS), tolerance(model), "losses")


def test_no_call_reads_more_than_a_chunk(model: RecurrentGemmaForCausalLM):
    seen = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((kwargs["input_ids"].shape, kwargs["past_key_values"].columns)),
        with_kwargs=True,
    )
    with hook:
        token_losses(model, IDS, chunk_size=10, batch_size=2)
    columns = IDS.shape[1] - 1
    assert seen == [((rows, min(10, columns - at)), at) for rows in (2, 1) for at in range(0, columns, 10)]


@pytest.mark.parametrize("every", [1, 4, WINDOW, 13])
@pytest.mark.parametrize("chunk_size", [5, 1000])
def test_resets_equal_separate_runs(model: RecurrentGemmaForCausalLM, every: int, chunk_size: int):
    read = token_losses(model, IDS, reset_every=every, chunk_size=chunk_size)
    inputs = IDS.shape[1] - 1
    separate = [one_pass(model, IDS[:, begin : min(begin + every, inputs) + 1]) for begin in range(0, inputs, every)]
    assert_close(read, torch.cat(separate, dim=1), tolerance(model), "losses")


def test_resets_equal_separate_runs_that_begin_with_a_token(model: RecurrentGemmaForCausalLM):
    read = token_losses(model, IDS, reset_every=5, reset_token_id=2, chunk_size=7)
    parts = [IDS[:, begin + 1 : begin + 6] for begin in range(0, IDS.shape[1] - 1, 5)]
    firsts = [IDS[:, :1], *[torch.full((3, 1), 2)] * (len(parts) - 1)]
    separate = [one_pass(model, torch.cat(pair, dim=1)) for pair in zip(firsts, parts, strict=True)]
    assert_close(read, torch.cat(separate, dim=1), tolerance(model), "losses")


def test_a_reset_longer_than_the_text_changes_nothing(model: RecurrentGemmaForCausalLM):
    whole = token_losses(model, IDS)
    for part in ("state", "recurrence"):
        assert torch.equal(token_losses(model, IDS, reset_every=1000, reset=part), whole)


@pytest.mark.parametrize("chunk_size", [3, 1000])
def test_a_recurrence_that_is_reset_keeps_the_window(chunk_size: int):
    ids, every = IDS[:1], WINDOW
    # Without recurrent blocks there is nothing to forget; without attention, only the start of a document differs.
    attention = tiny_model(tiny_config(block_types=["attention"], num_hidden_layers=2))
    forgetting = token_losses(attention, ids, reset_every=every, reset="recurrence", chunk_size=chunk_size)
    assert_close(forgetting, one_pass(attention, ids), tolerance(attention), "attention only")
    # With both, changing a token before the reset reaches what comes after it through the window alone.
    mixed = tiny_model(tiny_config(block_types=["attention", "recurrent"], num_hidden_layers=2))
    changed = ids.clone()
    changed[0, every - 2] = (changed[0, every - 2] + 1) % 97
    read = {"reset_every": every, "chunk_size": chunk_size}
    for part, reaches in (("state", False), ("recurrence", True)):
        before, after = (token_losses(mixed, i, reset=part, **read)[0, every:] for i in (ids, changed))
        assert torch.equal(before, after) != reaches, part
    recurrent = tiny_model(tiny_config(block_types=["recurrent"], num_hidden_layers=2))
    before, after = (
        token_losses(recurrent, i, reset_every=every, reset="recurrence", chunk_size=chunk_size)[0, every:]
        for i in (ids, changed)
    )
    assert torch.equal(before, after)
    assert not any(isinstance(module, RecurrentGemmaAttention) for module in recurrent.modules())


def test_chunks_end_at_borders():
    assert chunk_spans(10, 4, None) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert chunk_spans(10, 4, 5) == [slice(0, 4), slice(4, 5), slice(5, 9), slice(9, 10)]
    assert chunk_spans(7, 100, 3) == [slice(0, 3), slice(3, 6), slice(6, 7)]


def test_excerpts_are_the_text_from_places_at_equal_distances():
    text = torch.arange(100, 110)
    found = excerpts(text, count=3, length=4, bos_token_id=2)
    assert found.ids.tolist() == [[2, 100, 101, 102, 103], [2, 103, 104, 105, 106], [2, 106, 107, 108, 109]]
    assert found.places.tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    assert found.positions.tolist() == [[1, 2, 3, 4]] * 3
    # As long as the text, and without BOS: around the ring, each token once, after the one before it.
    whole = excerpts(text.tolist(), count=5)
    assert whole.ids[0].tolist() == [109, *range(100, 110)] and whole.ids[1, :2].tolist() == [101, 102]
    assert (whole.places.sort(dim=1).values == torch.arange(10)).all()
    assert torch.equal(text[whole.places], whole.ids[:, 1:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count: expected 1 to 10"),
        ({"count": 11}, "count: expected 1 to 10"),
        ({"count": 1, "length": 11}, "length: expected 1 to 10"),
    ],
)
def test_excerpts_that_the_text_cannot_give(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        excerpts(torch.arange(10), **arguments)
    with pytest.raises(ValueError, match="text_ids: expected"):
        excerpts(torch.zeros(2, 5), count=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reset_every": 0}, "reset_every: expected at least 1"),
        ({"chunk_size": 0}, "chunk_size: expected at least 1"),
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"reset": "window"}, "reset: expected one of"),
        ({"reset_token_id": 2}, "reset_token_id: expected None"),
        ({"reset_token_id": 2, "reset_every": 3, "reset": "recurrence"}, "reset_token_id: expected None"),
    ],
)
def test_wrong_arguments(model: RecurrentGemmaForCausalLM, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        token_losses(model, IDS, **arguments)


def test_wrong_inputs(model: RecurrentGemmaForCausalLM):
    with pytest.raises(TypeError, match="int64"):
        token_losses(model, IDS.int())
    with pytest.raises(ValueError, match=r"\(B, L \+ 1\)"):
        token_losses(model, IDS[0])
    with pytest.raises(ValueError, match="eval mode"):
        token_losses(tiny_model().train(), IDS)


def test_losses_are_those_of_cross_entropy_at_a_known_model():
    # All logits equal: every token costs log(vocabulary).
    model = tiny_model(tiny_config(tie_word_embeddings=False))
    with torch.no_grad():
        model.lm_head.weight.zero_()
    read = token_losses(model, IDS)
    assert_close(read, torch.full_like(read, F.cross_entropy(torch.zeros(1, 97), torch.tensor([0]))), 1e-6, "losses")
