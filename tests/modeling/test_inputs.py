"""What layers are told about a sequence, against the rule told column by column: every small mask and every source.

The rule: position 0 at a valid token starts a document, and a pad does not exist.
"""

import itertools

import pytest
import torch

from recurrent_gemma.modeling.inputs import (
    check_key_lengths,
    check_labels,
    check_token_ids,
    derive_sequence_inputs,
    expect_all,
    next_positions,
)

COLUMNS = 4
MASKS = torch.tensor(list(itertools.product([0, 1], repeat=COLUMNS)))
ROWS = MASKS.shape[0]
# Each row's next position before these columns, as a cache would have it; rows differ.
BEFORE = torch.arange(ROWS) % 3


def derive(mask=None, **options):
    options = {"batch": ROWS, "length": COLUMNS, "device": torch.device("cpu"), **options}
    return derive_sequence_inputs(attention_mask=mask, **options)


def walk(mask, before, first=()):
    """Positions of one row's valid tokens (None at pads), and after each column that of the next valid token.

    A document starts at each column of ``first``; if a pad is there, at the valid token after it, if there is one.
    """
    positions, after, following, is_first = [], [], int(before), False
    for column, is_valid in enumerate(mask):
        is_first |= column in first
        positions.append((0 if is_first else following) if is_valid else None)
        if is_valid:
            following, is_first = positions[-1] + 1, False
        after.append(following)
    return positions, after


def assert_as_walked(sequence, masks, walked):
    """Positions and starts at valid tokens, and the position after the last column."""
    for row, (mask, (positions, after)) in enumerate(zip(masks.tolist(), walked, strict=True)):
        for column, position in enumerate(positions):
            if position is not None:
                assert sequence.positions[row, column] == position
            assert bool(mask[column]) == (sequence.valid is None or bool(sequence.valid[row, column]))
            starts = sequence.starts is not None and bool(sequence.starts[row, column])
            assert starts == (position == 0)
        assert sequence.next_position[row] == after[-1]
    assert sequence.positions.dtype == sequence.next_position.dtype == torch.int64


def test_positions_count_valid_tokens_from_where_the_cache_stands():
    sequence = derive(MASKS, past_next_position=BEFORE)
    assert_as_walked(sequence, MASKS, [walk(mask, before) for mask, before in zip(MASKS.tolist(), BEFORE, strict=True)])
    assert torch.equal(sequence.past_length, BEFORE)
    assert_as_walked(derive(MASKS), MASKS, [walk(mask, 0) for mask in MASKS.tolist()])


def test_columns_that_the_cache_has_seen_are_left_out_of_the_mask():
    seen = torch.tensor([[1, 0, 1]]).expand(ROWS, -1)
    sequence = derive(torch.cat((seen, MASKS), dim=1), past_columns=3, past_next_position=BEFORE)
    assert_as_walked(sequence, MASKS, [walk(mask, before) for mask, before in zip(MASKS.tolist(), BEFORE, strict=True)])


@pytest.mark.parametrize("first", [(), (0,), (2,), (0, 1, 3), (1, 2, 3)])
def test_position_ids_start_documents_and_are_ignored_at_pads(first):
    walked = [walk(mask, before, first) for mask, before in zip(MASKS.tolist(), BEFORE, strict=True)]
    for at_pads in (0, 7, -1):
        position_ids = torch.tensor([[at_pads if p is None else p for p in positions] for positions, _ in walked])
        for dtype in (torch.int64, torch.int32):
            sequence = derive(MASKS, past_next_position=BEFORE, position_ids=position_ids.to(dtype))
            assert_as_walked(sequence, MASKS, walked)


def test_position_ids_of_one_row_hold_for_all():
    sequence = derive(position_ids=torch.tensor([[0, 1, 0, 1]]))
    assert_as_walked(sequence, torch.ones_like(MASKS), [walk([1] * COLUMNS, 0, (0, 2))] * ROWS)


@pytest.mark.parametrize("first", [(0,), (0, 2), (0, 1, 3), (0, 1, 2, 3)])
def test_documents_by_number_and_by_length_give_the_positions_of_the_walk(first):
    numbers = torch.zeros(1, COLUMNS, dtype=torch.long)
    numbers[0, list(first[1:])] = 1
    numbers = numbers.cumsum(dim=1)
    lengths = torch.tensor([*first, COLUMNS], dtype=torch.int32)
    by_number = derive(MASKS, seq_idx=numbers.expand(ROWS, -1))
    assert_as_walked(by_number, MASKS, [walk(mask, 0, first) for mask in MASKS.tolist()])
    # Any numbers that differ do.
    assert torch.equal(derive(MASKS, seq_idx=5 - 3 * numbers.expand(ROWS, -1)).positions, by_number.positions)
    for mask in (None, *MASKS[:, None]):
        walked = walk([1] * COLUMNS if mask is None else mask[0].tolist(), 0, first)
        valid = torch.ones(1, COLUMNS) if mask is None else mask
        positions = torch.tensor([[9 if p is None else p for p in walked[0]]])
        for sources in (
            {"cu_seq_lens_q": lengths},
            {"cu_seq_lens_q": lengths, "seq_idx": numbers},
            {"cu_seq_lens_q": lengths, "position_ids": positions},
            {"seq_idx": numbers, "position_ids": positions},
        ):
            assert_as_walked(derive(mask, batch=1, **sources), valid, [walked])


def test_sources_that_disagree_are_refused_unless_at_a_pad():
    numbers, mask = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[1, 1, 0, 1]])
    wrong = torch.tensor([[0, 1, 2, 3]])
    with pytest.raises(ValueError, match=r"^position_ids: expected the positions that .* got 2 at \(0, 2\); pass one"):
        derive(batch=1, seq_idx=numbers, position_ids=wrong)
    with pytest.raises(ValueError, match=r"^position_ids: expected the positions that .* got 2 at \(0, 3\)"):
        derive(mask, batch=1, seq_idx=numbers, position_ids=torch.tensor([[0, 1, 5, 2]]))
    assert derive(mask, batch=1, seq_idx=numbers, position_ids=torch.tensor([[0, 1, 5, 0]])).next_position == 1
    with pytest.raises(ValueError, match=r"^cu_seq_lens_q, seq_idx: .* got False at \(0, 2\); pass one"):
        derive(batch=1, seq_idx=numbers, cu_seq_lens_q=torch.tensor([0, 3, 4]))


@pytest.mark.parametrize("before", [0, 2])
def test_positions_are_refused_exactly_where_they_break_the_rule(before):
    tokens = list(itertools.product([-1, 0, 1, 2, 3], repeat=3))
    for mask in itertools.product([0, 1], repeat=3):
        for positions in tokens:
            expected, follows = before, True
            for position, is_valid in zip(positions, mask, strict=True):
                if is_valid:
                    follows &= position in (0, expected)
                    expected = position + 1
            options = {
                "batch": 1,
                "length": 3,
                "past_next_position": torch.tensor([before]),
                "position_ids": torch.tensor([positions]),
            }
            if follows:
                assert derive(torch.tensor([mask]), **options).next_position == expected
            else:
                with pytest.raises(ValueError, match=r"^position_ids: expected every valid token at 0"):
                    derive(torch.tensor([mask]), **options)


def test_next_positions_after_every_column():
    valid = MASKS.bool()
    positions = derive(MASKS, past_next_position=BEFORE).positions
    expected = [walk(mask, before)[1] for mask, before in zip(MASKS.tolist(), BEFORE, strict=True)]
    assert next_positions(positions, valid, BEFORE).tolist() == expected
    assert next_positions(positions[-1:], None, BEFORE[-1:]).tolist() == expected[-1:]


def test_what_does_not_occur_is_none():
    sequence = derive(torch.ones_like(MASKS), past_next_position=torch.ones(ROWS, dtype=torch.long))
    assert sequence.valid is None and sequence.starts is None
    some = derive(MASKS)
    assert some.valid.dtype == some.starts.dtype == torch.bool
    # Not a view of all the columns' positions, which a cache would keep.
    assert some.next_position.untyped_storage().nbytes() == some.next_position.nbytes


@pytest.mark.parametrize(
    "sources",
    [
        {},
        {"past_columns": 2, "past_next_position": torch.tensor([2])},
        {"position_ids": torch.tensor([[0, 1, 0, 1]])},
        {"seq_idx": torch.tensor([[0, 0, 1, 1]])},
        {"cu_seq_lens_q": torch.tensor([0, 2, 4]), "seq_idx": torch.tensor([[0, 0, 1, 1]])},
        {"cu_seq_lens_q": torch.tensor([0, 2, 4]), "position_ids": torch.tensor([[0, 1, 0, 1]])},
    ],
)
def test_results_lie_on_the_device_that_is_asked_for(sources):
    # Meta tensors have no values: looking at one raises, as it would make an accelerator wait.
    for mask in (None, torch.ones(1, COLUMNS + sources.get("past_columns", 0))):
        sequence = derive(mask, batch=1, device=torch.device("meta"), **sources)
        assert (sequence.valid is None) == (mask is None)
        assert all(t.is_meta for t in sequence if t is not None)
        assert sequence.positions.shape == sequence.starts.shape == (1, COLUMNS)


# --- Values -----------------------------------------------------------------------------------------------------------


def test_the_first_value_that_does_not_hold_is_named():
    condition, actual = torch.tensor([[True, False], [False, True]]), torch.tensor([[1, 2], [3, 4]])
    with pytest.raises(ValueError, match=r"^x: expected y, got 2 at \(0, 1\); do z\.$"):
        expect_all(condition, "x: expected y", actual, "do z")
    expect_all(condition | True, "x: expected y", actual, "do z")
    expect_all(torch.zeros(1, dtype=torch.bool, device="meta"), "x: expected y", actual, "do z")  # has no values


@pytest.mark.parametrize(("value", "holds"), [(-1, False), (0, True), (9, True), (10, False)])
def test_ids_lie_in_the_vocabulary(value, holds):
    checks = (
        lambda: check_token_ids(torch.tensor([[3, value]]), 10),
        lambda: check_labels(torch.tensor([[3, value]]), (1, 2), 10),
    )
    for check in checks:
        if holds:
            check()
        else:
            with pytest.raises(ValueError, match=rf"expected ids from 0 to 9 .* got {value} at \(0, 1\)"):
                check()


def test_labels_may_be_ignored_and_have_the_shape_of_the_tokens():
    check_labels(torch.tensor([[-100, 0]]), (1, 2), 10)
    for value in (-101, -99):
        with pytest.raises(ValueError, match=r"^targets: expected ids from 0 to 9"):
            check_labels(torch.tensor([[value, 0]]), (1, 2), 10, "targets")
    with pytest.raises(ValueError, match=r"^labels: expected shape \(B, L\) = \(1, 3\), got \(1, 2\)\.$"):
        check_labels(torch.tensor([[1, 0]]), (1, 3), 10)
    with pytest.raises(TypeError, match=r"^labels: expected an int64 tensor, got torch\.int32\.$"):
        check_labels(torch.tensor([[1, 0]], dtype=torch.int32), (1, 2), 10)
    with pytest.raises(TypeError, match=r"^labels: expected an int64 tensor, got list\.$"):
        check_labels([[1, 0]], (1, 2), 10)


def test_key_lengths_are_those_of_the_queries():
    lengths = torch.tensor([0, 2, 4])
    check_key_lengths(None, None)
    check_key_lengths(None, lengths)
    check_key_lengths(lengths.clone(), lengths)
    for keys, queries in ((lengths, None), (lengths[:2], lengths), (torch.tensor([0, 3, 4]), lengths)):
        with pytest.raises(ValueError, match=r"^cu_seq_lens_k: expected the same lengths as cu_seq_lens_q, got"):
            check_key_lengths(keys, queries)
