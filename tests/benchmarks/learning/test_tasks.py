"""The tasks, against answers found by reading their rows in plain Python."""

from collections import Counter

import pytest
import torch

from benchmarks.learning.tasks import IGNORED, TASKS, Batch, flip_flop, induction_heads, last_marker, parity

Answers = dict[int, tuple[int, int]]  # column that asks -> (answer, distance to the token that holds it)


def _copying(row: list[int]) -> Answers:
    items = [(column, token) for column, token in enumerate(row) if token > 1]
    questions = [column for column, token in enumerate(row) if token == 1]
    assert questions == list(range(len(row) - len(items), len(row)))
    return {question: (token, question - column) for question, (column, token) in zip(questions, items, strict=True)}


def _induction(row: list[int]) -> Answers:
    assert row.count(0) == 2 and row[-1] == 0
    value = row.index(0) + 1
    assert value < len(row) - 1
    return {len(row) - 1: (row[value], len(row) - 1 - value)}


def _recall(row: list[int]) -> Answers:
    memory, answers = {}, {}
    for column in range(0, 8, 2):
        key, value = row[column : column + 2]
        assert 1 <= key <= 8 < value <= 16 and key not in memory
        memory[key] = (value, column + 1)
    for column in range(8, len(row)):
        if row[column] != 0:
            value, place = memory[row[column]]
            answers[column] = (value, column - place)
    assert len(answers) == len({value for value, _ in answers.values()}) == 4
    return answers


def _flip_flop(row: list[int]) -> Answers:
    answers, bit, written = {}, None, None
    assert row[0] == 2 and row[-2] == 3
    for column in range(0, len(row), 2):
        instruction, operand = row[column : column + 2]
        assert instruction in (2, 3, 4) and operand in (0, 1)
        if instruction == 2:
            bit, written = operand, column + 1
        elif instruction == 3:
            assert operand == bit and written is not None
            answers[column] = (bit, column - written)
    return answers


def _marker(row: list[int]) -> Answers:
    places = [column for column, token in enumerate(row) if token == 0]
    assert 1 <= len(places) <= 3 and places[-1] < 8
    value = places[-1] + 1
    questions = [column for column, token in enumerate(row) if token == 1]
    assert len(questions) == 4 and questions[0] >= len(row) // 2 and questions[-1] == len(row) - 1
    assert row[value] > 1
    return {question: (row[value], question - value) for question in questions}


def _parity(row: list[int]) -> Answers:
    return {column: (sum(row[: column + 1]) % 2, column) for column in range(len(row))}


READ = {
    "copying": _copying,
    "induction": _induction,
    "recall": _recall,
    "flip-flop": _flip_flop,
    "marker": _marker,
    "parity": _parity,
}


def _rows(batch: Batch) -> list[tuple[list[int], Answers]]:
    return [
        (ids, {c: (label, distance) for c, (label, distance) in enumerate(zip(*rest, strict=True)) if label != IGNORED})
        for ids, *rest in zip(batch.ids.tolist(), batch.labels.tolist(), batch.distance.tolist(), strict=True)
    ]


@pytest.mark.parametrize("length", [16, 32, 250])
@pytest.mark.parametrize("name", TASKS)
def test_answers_are_those_that_reading_the_row_gives(name: str, length: int):
    for sampler in (TASKS[name].train, *TASKS[name].tests.values()):
        batch = sampler(200, length, torch.Generator().manual_seed(3))
        assert batch.ids.shape == batch.labels.shape == batch.distance.shape == (200, length)
        assert (batch.ids.min(), batch.ids.max()) == (0, TASKS[name].vocab_size - 1)
        assert not batch.distance[~batch.asked].any()
        for row, answers in _rows(batch):
            expected = READ[name](row)
            if sampler is TASKS["parity"].tests[""]:
                expected = {length - 1: expected[length - 1]}
            assert answers == expected


@pytest.mark.parametrize("name", TASKS)
def test_rows_follow_their_seed(name: str):
    task = TASKS[name]
    first, same, other = (task.train(8, 32, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(first.ids, same.ids) and torch.equal(first.labels, same.labels)
    assert not torch.equal(first.ids, other.ids)
    torch.manual_seed(0)
    assert torch.equal(first.ids, task.train(8, 32, torch.Generator().manual_seed(5)).ids), "global state was used"


@pytest.mark.parametrize("name", TASKS)
def test_one_answer_for_all_gets_no_more_than_chance(name: str):
    labels = TASKS[name].train(4000, 32, torch.Generator().manual_seed(1))
    counts = Counter(labels.labels[labels.asked].tolist())
    assert max(counts.values()) / counts.total() < TASKS[name].chance + 0.02
    if name != "recall":  # where guessing among the row's own values is better than one answer for all
        assert len(counts) == round(1 / TASKS[name].chance)


def test_ignored_instructions_have_their_share():
    for share in (0.1, 0.8, 0.98):
        ids = flip_flop(400, 512, torch.Generator().manual_seed(0), ignored=share).ids[:, 2:-2:2]
        assert abs((ids == 4).double().mean() - share) < 0.01
        assert abs((ids == 2).double().mean() - (1 - share) / 2) < 0.01


def test_places_vary():
    generator = torch.Generator().manual_seed(0)
    assert set((induction_heads(4000, 24, generator).ids[:, :-1] == 0).nonzero()[:, 1].tolist()) == set(range(22))
    markers = last_marker(4000, 32, generator).ids == 0
    assert set(markers.sum(dim=1).tolist()) == {1, 2, 3}
    assert set(markers.nonzero()[:, 1].tolist()) == set(range(0, 8, 2))
    assert parity(4, 16, generator, only_last=True).asked.sum(dim=1).tolist() == [1] * 4
