"""Positions and documents that follow no rule, or contradict each other, raise by name and change no cache."""

import pytest
import torch

from recurrent_gemma.modeling import RecurrentGemmaCache
from tests.modeling.models import tiny_model
from tests.modeling.refusals import IDS, LENGTH, ONE_ROW, PAST, ROWS, assert_refused, changed, filled_cache


@pytest.fixture(scope="module")
def model():
    return tiny_model()


RULE = "position_ids: expected every valid token at 0, which starts a document, or one after"
COUNT = torch.arange(LENGTH).expand(ROWS, LENGTH)
POSITIONS = {
    "float": (TypeError, "position_ids: expected an integer tensor, got torch.float32", COUNT.float()),
    "bool": (TypeError, "position_ids: expected an integer tensor, got torch.bool", COUNT.bool()),
    "1-D": (ValueError, "position_ids: expected shape (B, L) = (2, 6) or (1, 6), got (6,)", COUNT[0]),
    "too short": (ValueError, "position_ids: expected shape (B, L) = (2, 6) or (1, 6), got (2, 5)", COUNT[:, 1:]),
    "three rows": (ValueError, "position_ids: expected shape (B, L) = (2, 6) or (1, 6), got (3, 6)",
                   COUNT[:1].expand(3, LENGTH)),
    "not from 0": (ValueError, RULE, COUNT + 1),
    "a gap": (ValueError, "(the first one at the cache's next position), got 6 at (1, 5)", changed(COUNT, 6)),
    "standing still": (ValueError, RULE, changed(COUNT, 4)),
    "going back": (ValueError, RULE, COUNT.flip(1)),
    "below 0": (ValueError, RULE, changed(COUNT, -1)),
}  # fmt: skip


@pytest.mark.parametrize("name", POSITIONS)
def test_positions(model, name):
    error, message, positions = POSITIONS[name]
    assert_refused(model, error, message, input_ids=IDS, position_ids=positions)


@pytest.mark.parametrize(
    "first",
    [
        # The last row holds a pad, which takes no position.
        [PAST, PAST],
        [PAST - 1, PAST - 1],
        [PAST + 1, PAST],
        [1, 1],
    ],
)
def test_positions_that_do_not_go_on_from_a_cache(model, first):
    positions = torch.tensor(first)[:, None] + torch.arange(LENGTH)
    assert_refused(model, ValueError, RULE, filled_cache(model), input_ids=IDS, position_ids=positions)


def test_positions_that_go_on_from_a_cache_or_start_anew(model):
    for first in ([PAST, PAST - 1], [0, PAST - 1]):
        positions = torch.tensor(first)[:, None] + torch.arange(LENGTH)
        cache = filled_cache(model)
        with torch.no_grad():
            model(IDS, position_ids=positions, past_key_values=cache)
        assert cache.next_position.tolist() == [first[0] + LENGTH, first[1] + LENGTH]


LENGTHS = "cu_seq_lens_q: expected growing values from 0 to L = 6"
DOCUMENTS = {
    "not from 0": (ValueError, LENGTHS, {"cu_seq_lens_q": torch.tensor([1, 6])}),
    "not to the end": (ValueError, LENGTHS, {"cu_seq_lens_q": torch.tensor([0, 3, 5])}),
    "beyond the end": (ValueError, LENGTHS, {"cu_seq_lens_q": torch.tensor([0, 3, 7])}),
    "an empty document": (ValueError, LENGTHS, {"cu_seq_lens_q": torch.tensor([0, 3, 3, 6])}),
    "going back": (ValueError, LENGTHS, {"cu_seq_lens_q": torch.tensor([0, 4, 3, 6])}),
    "no document": (ValueError, "cu_seq_lens_q: expected a 1-D integer tensor of at least 2",
                    {"cu_seq_lens_q": torch.tensor([0])}),
    "2-D": (ValueError, "cu_seq_lens_q: expected a 1-D integer tensor", {"cu_seq_lens_q": torch.tensor([[0, 6]])}),
    "float": (ValueError, "cu_seq_lens_q: expected a 1-D integer tensor", {"cu_seq_lens_q": torch.tensor([0.0, 6.0])}),
    "other key lengths": (ValueError, "cu_seq_lens_k: expected the same lengths as cu_seq_lens_q",
                          {"cu_seq_lens_q": torch.tensor([0, 6]), "cu_seq_lens_k": torch.tensor([0, 3, 6])}),
    "other key lengths of as many": (ValueError, "cu_seq_lens_k: expected the same lengths as cu_seq_lens_q",
                                     {"cu_seq_lens_q": torch.tensor([0, 2, 6]),
                                      "cu_seq_lens_k": torch.tensor([0, 3, 6])}),
    "key lengths alone": (ValueError, "cu_seq_lens_k: expected the same lengths as cu_seq_lens_q",
                          {"cu_seq_lens_k": torch.tensor([0, 6])}),
    "seq_idx of another shape": (ValueError, "seq_idx: expected shape (B, L) = (1, 6), got (6,)",
                                 {"seq_idx": torch.zeros(LENGTH)}),
    "lengths against seq_idx": (ValueError, "cu_seq_lens_q, seq_idx: expected the same document starts from both",
                                {"cu_seq_lens_q": torch.tensor([0, 3, 6]),
                                 "seq_idx": torch.tensor([[0, 0, 1, 1, 1, 1]])}),
    "lengths against positions": (ValueError, "position_ids: expected the positions that cu_seq_lens_q or seq_idx give",
                                  {"cu_seq_lens_q": torch.tensor([0, 3, 6]),
                                   "position_ids": torch.tensor([[0, 1, 0, 1, 2, 3]])}),
    "one document against positions of two": (ValueError, "position_ids: expected the positions that",
                                              {"cu_seq_lens_q": torch.tensor([0, 6]),
                                               "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]])}),
    "seq_idx against positions": (ValueError, "position_ids: expected the positions that cu_seq_lens_q or seq_idx give",
                                  {"seq_idx": torch.tensor([[0, 0, 0, 1, 1, 1]]), "position_ids": COUNT[:1]}),
}  # fmt: skip


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents(model, name):
    error, message, inputs = DOCUMENTS[name]
    assert_refused(model, error, message, RecurrentGemmaCache(model.config), input_ids=ONE_ROW, **inputs)


def test_lengths_of_several_rows(model):
    message = "cu_seq_lens_q: expected one packed row (B = 1), got B = 2"
    assert_refused(model, ValueError, message, input_ids=IDS, cu_seq_lens_q=torch.tensor([0, 6]))


@pytest.mark.parametrize(
    "inputs", [{"cu_seq_lens_q": torch.tensor([0, 3, 6])}, {"seq_idx": torch.tensor([[0, 0, 0, 1, 1, 1]])}]
)
def test_documents_do_not_say_whether_a_cache_goes_on(model, inputs):
    message = "cu_seq_lens_q, seq_idx: expected None together with a cache that holds tokens"
    assert_refused(model, ValueError, message, filled_cache(model, rows=1), input_ids=ONE_ROW, **inputs)
