"""Scores from forked states are those of one pass a request, however they are cut, batched and interrupted."""

import random

import pytest
import torch

from recurrent_gemma.evaluation import continuation_scores
from recurrent_gemma.evaluation.continuation_scores import ContinuationScorer, rows_per_pass
from tests.evaluation.by_hand import TOLERANCE, demo, held_out, log_likelihood


def shared_requests() -> list[tuple[list[int], list[int]]]:
    """Requests below a prefix of more than two windows of 128 tokens, and others, in no order.

    Choices of one token, of several, choices that begin alike, choices that begin with another choice, the same request
    twice, a context of BOS alone, and one that is part of another.
    """
    _, tokenizer = demo()
    prefix = tokenizer(held_out(1500)).input_ids
    assert len(prefix) > 2 * 128 + 1
    found = [([tokenizer.bos_token_id], prefix[1:40]), (prefix[:200], prefix[200:230]), (prefix, [9])]
    for begin in (3000, 4000, 5000):
        question = prefix + tokenizer(held_out(120, begin), add_special_tokens=False).input_ids
        endings = [tokenizer(held_out(60, begin + 777 * i), add_special_tokens=False).input_ids for i in range(3)]
        found += [(question, [token]) for token in (300, 400, 500)]
        found += [(question, ending) for ending in endings]
        found += [(question, endings[0][:5]), (question, endings[0] + endings[1]), (question, endings[2])]
        found += [(question, [*endings[1][:-1], token]) for token in (17, 18)]
    random.Random(0).shuffle(found)
    return found


@pytest.fixture(scope="module")
def by_hand() -> list[tuple[float, bool]]:
    return [log_likelihood(*request) for request in shared_requests()]


def scores(known=(), **options) -> dict[int, tuple[float, bool]]:
    scorer = ContinuationScorer(demo()[0], **options)
    return {score.request: (score.log_likelihood, score.is_greedy) for score in scorer.scores(shared_requests(), known)}


def assert_equal(found: dict[int, tuple[float, bool]], expected: list[tuple[float, bool]]) -> None:
    assert sorted(found) == list(range(len(expected)))
    for index, (value, greedy) in enumerate(expected):
        assert found[index] == (pytest.approx(value, abs=TOLERANCE), greedy), index


@pytest.mark.parametrize("batch_size", [1, 3, 64, "auto"])
def test_equal_to_one_pass_a_request(batch_size: int | str, by_hand: list[tuple[float, bool]]):
    assert_equal(scores(batch_size=batch_size), by_hand)


def test_equal_in_passes_of_few_tokens_and_few_logits(
    monkeypatch: pytest.MonkeyPatch, by_hand: list[tuple[float, bool]]
):
    # 7 columns a row and the logits of 2; rows shorter than others are pads alone in whole passes.
    monkeypatch.setattr(continuation_scores, "TOKENS_ON_CPU", 28)
    monkeypatch.setattr(continuation_scores, "LOGIT_BYTES", 4 * 2500 * 4 * 2)
    assert_equal(scores(batch_size=4), by_hand)


def test_the_greedy_continuation_is_seen_as_such():
    model, tokenizer = demo()
    prompt = tokenizer(held_out(400), return_tensors="pt").input_ids
    answer = model.generate(prompt, max_new_tokens=6, do_sample=False)[0, prompt.shape[1] :].tolist()
    other = [*answer[:-1], (answer[-1] + 1) % model.config.vocab_size]
    context = prompt[0].tolist()
    requests = [(context, answer), (context, other), (context, answer[:1])]
    found = {score.request: score.is_greedy for score in ContinuationScorer(model, batch_size=2).scores(requests)}
    assert found == {0: True, 1: False, 2: True}


def test_the_prefix_is_read_once():
    model, tokenizer = demo()
    requests = shared_requests()
    scorer = ContinuationScorer(model, batch_size=4)
    list(scorer.scores(requests))
    plain = sum(len(context) + len(continuation) - 1 for context, continuation in requests)
    prefix = len(tokenizer(held_out(1500)).input_ids)
    assert scorer.tokens_read < prefix + 3 * 350 < plain / 10


def test_what_is_known_is_left_out_and_the_rest_is_the_same_bits():
    whole = scores(batch_size=3)
    model, _ = demo()
    for known in (set(range(0, len(whole), 2)), set(range(5)), set(whole)):
        scorer = ContinuationScorer(model, batch_size=3)
        found = {s.request: (s.log_likelihood, s.is_greedy) for s in scorer.scores(shared_requests(), known)}
        assert found == {index: whole[index] for index in whole if index not in known}
        assert bool(scorer.tokens_read) == bool(found)


def test_out_of_memory_halves_an_automatic_batch_and_ends_a_fixed_one(
    monkeypatch: pytest.MonkeyPatch, by_hand: list[tuple[float, bool]]
):
    model, _ = demo()
    forward, refused = type(model).forward, []

    def limited(self, input_ids=None, **options):
        if input_ids.shape[0] > 2:
            refused.append(input_ids.shape[0])
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, input_ids, **options)

    monkeypatch.setattr(type(model), "forward", limited)
    assert_equal(scores(batch_size="auto"), by_hand)
    assert refused
    with pytest.raises(torch.OutOfMemoryError):
        scores(batch_size=4)


def test_rows_of_an_automatic_pass():
    cpu = torch.device("cpu")
    assert [rows_per_pass(length, cpu) for length in (1, 1024, 8192, 10**6)] == [64, 8, 1, 1]
    assert rows_per_pass(1, cpu, max_rows=5) == 5
