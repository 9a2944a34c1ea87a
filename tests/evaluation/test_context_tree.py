"""The tree covers every request's tokens once, whatever it folds."""

import random

import pytest

from recurrent_gemma.evaluation.context_tree import Node, context_tree, tokens_to_read, walk

Request = tuple[list[int], list[int]]


def similar_requests(seed: int) -> list[Request]:
    """Up to 30 requests over 3 tokens, most of which share a beginning."""
    draw = random.Random(seed)

    def some(least: int, most: int) -> list[int]:
        return [draw.randrange(3) for _ in range(draw.randint(least, most))]

    base = some(1, 40)
    return [(base[: draw.randint(1, len(base))] + some(0, 5), some(1, 5)) for _ in range(draw.randint(1, 30))]


@pytest.mark.parametrize("min_shared", [1, 4, 16])
@pytest.mark.parametrize("max_levels", [1, 2, 8])
def test_every_token_to_score_has_one_place_after_its_own_context(min_shared: int, max_levels: int):
    for seed in range(50):
        requests = similar_requests(seed)
        found: dict[int, list[int]] = {index: [] for index in range(len(requests))}

        def visit(node: Node, above: list[int], level: int, requests=requests, found=found) -> None:
            assert node.start == len(above) and level <= max_levels
            read = above + node.tokens.tolist()
            for column, token, request in node.targets:
                context, continuation = requests[request]
                position = node.start + column
                assert read[: position + 1] == (context + continuation)[: position + 1]
                assert token == (context + continuation)[position + 1]
                found[request].append(position)
            for child in node.children:
                visit(child, read, level + 1)

        for node in context_tree(requests, min_shared=min_shared, max_levels=max_levels):
            visit(node, [], 1)
        for index, (context, continuation) in enumerate(requests):
            assert sorted(found[index]) == list(range(len(context) - 1, len(context) + len(continuation) - 1))


def test_every_request_ends_at_one_node():
    requests = similar_requests(3)
    ended = [request for node in walk(context_tree(requests)) for request in node.requests]
    assert sorted(ended) == list(range(len(requests)))


def test_what_is_shared_is_read_once():
    shots, questions = list(range(100)), [list(range(1000 * i, 1000 * i + 20)) for i in range(1, 4)]
    letters = [[("A", "B", "C", "D").index(letter)] for letter in "ABCD"]
    one_token = [(shots + question, letter) for question in questions for letter in letters]
    assert tokens_to_read(context_tree(one_token)) == 100 + 3 * 20
    sentences = [(shots + question, [7 + i] * 9) for question in questions for i in range(4)]
    assert tokens_to_read(context_tree(sentences)) == 100 + 3 * (20 + 4 * 8)
    # Too little to keep a state for: the questions are read with each of their four endings.
    assert tokens_to_read(context_tree(sentences, min_shared=21)) == 100 + 12 * (20 + 8)


def test_an_empty_context_or_continuation_is_refused():
    for request in (([], [1]), ([1], [])):
        with pytest.raises(ValueError, match="expected at least one token of context and one of continuation"):
            context_tree([([1], [2]), request])
