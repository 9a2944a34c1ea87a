"""Every prompt is in one batch, of equal options, below a beginning that is its own."""

import itertools
from typing import Any

from recurrent_gemma.evaluation.generation_batches import MIN_SHARED_TOKENS, GenerationBatch, generation_batches

SHOTS, OTHER_SHOTS = list(range(1, MIN_SHARED_TOKENS + 1)), list(range(500, 600))
PROMPTS = [
    [*SHOTS, 7, 8, 9],
    [*OTHER_SHOTS, 7, 5],
    [*SHOTS, 8],
    [1],
    [*SHOTS, 9, 9],
    [*OTHER_SHOTS, 8, 8],
    [3, 4],
    [*SHOTS, 9, 9],
    SHOTS,
]


def batches(share: bool = True, rows: int = 2, options: dict[int, Any] | None = None) -> list[GenerationBatch]:
    given = [{"until": ["\n"], **(options or {}).get(index, {})} for index in range(len(PROMPTS))]
    return list(generation_batches(PROMPTS, given, lambda length: rows, share=share))


def test_every_prompt_once_below_its_own_beginning():
    for share in (True, False):
        found = batches(share)
        assert sorted(index for batch in found for index in batch.requests) == list(range(len(PROMPTS)))
        for batch in found:
            assert len(batch.requests) <= 2
            for index in batch.requests:
                assert tuple(PROMPTS[index][: len(batch.shared)]) == batch.shared and len(PROMPTS[index]) > len(
                    batch.shared
                )
        assert {len(batch.shared) for batch in found} == ({0, MIN_SHARED_TOKENS, 100} if share else {0})


def test_a_beginning_that_fills_no_batch_is_not_shared():
    # Four prompts below one beginning, two below the other.
    assert {len(batch.shared) for batch in batches(rows=4)} == {0, MIN_SHARED_TOKENS}
    assert {len(batch.shared) for batch in batches(rows=5)} == {0}


def test_equal_beginnings_follow_one_another():
    shared = [batch.shared for batch in batches()]
    changes = sum(before != after for before, after in itertools.pairwise(shared))
    assert changes == len(set(shared)) - 1


def test_other_options_are_another_batch():
    found = batches(rows=100, options={0: {"do_sample": True}})
    assert [batch.requests for batch in found if 0 in batch.requests] == [(0,)]


def test_the_longest_come_first_and_decide_on_the_rows():
    asked: list[int] = []
    options = [{}] * len(PROMPTS)
    list(generation_batches(PROMPTS, options, lambda length: asked.append(length) or 3, share=False))
    assert asked == sorted(asked, reverse=True) and asked[0] == max(map(len, PROMPTS))
