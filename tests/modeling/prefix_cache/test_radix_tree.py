"""The tree against brute force: random insertions and removals of random words."""

import random

import pytest
import torch

from recurrent_gemma.modeling.cache import RecurrentState
from recurrent_gemma.modeling.prefix_cache.radix_tree import RadixTree
from recurrent_gemma.modeling.prefix_cache.states import Snapshot, Window
from tests.modeling.prefix_cache.trees import check_tree, paths


def ids(*tokens) -> torch.Tensor:
    return torch.tensor(tokens, dtype=torch.int32)


def value_of(word) -> float:
    """A number that tells prefixes apart."""
    return float(hash(tuple(int(token) for token in word)) % 9973)


def insert(tree: RadixTree, word):
    """Insert a word whose "keys and values" at every place are the number of the prefix that ends there."""
    places = range(max(0, len(word) - tree.window), len(word))
    values = torch.tensor([value_of(word[: p + 1]) for p in places]).view(1, 1, -1, 1)
    state = RecurrentState(torch.full((1, 3, 2), value_of(word)), torch.full((1, 2), value_of(word)))
    return tree.insert(word, Snapshot((state,)), Window(len(places), (values, -values)))


def expect_restored(tree: RadixTree, word) -> None:
    node, known = tree.match(word)
    assert (node.depth, known) == (len(word), len(word))
    assert torch.equal(tree.ids(node), word)
    assert torch.equal(node.snapshot.states[0].rg_lru, torch.full((1, 2), value_of(word)))
    keys, values = (torch.cat([window.layers[i] for window in tree.windows(node)], dim=2).flatten() for i in (0, 1))
    expected = [value_of(word[: p + 1]) for p in range(max(0, len(word) - tree.window), len(word))]
    assert keys.tolist() == expected == (-values).tolist()


@pytest.mark.parametrize("window", [1, 3, 8, 100])
@pytest.mark.parametrize("seed", range(4))
def test_random_words_come_back_whole_and_freed_bytes_are_what_is_freed(window, seed):
    draw = random.Random(seed)
    tree, words = RadixTree(window), set()
    for _ in range(60):
        if words and draw.random() < 0.4:
            word = draw.choice(sorted(words))
            words.remove(word)
            node = tree.match(ids(*word))[0]
            before, promised = tree.nbytes, tree.freed_bytes(node)
            tree.remove(node)
            assert before - tree.nbytes == promised
        else:
            start = draw.choice(sorted(words)) if words and draw.random() < 0.7 else ()
            start = start[: draw.randint(0, len(start))]
            word = start + tuple(draw.randint(1, 3) for _ in range(draw.randint(0 if start else 1, 12)))
            words.add(word)
            insert(tree, ids(*word))
        check_tree(tree)
        assert set(paths(tree)) == words
        for word in words:
            expect_restored(tree, ids(*word))
    while words:
        tree.remove(tree.match(ids(*words.pop()))[0])
        check_tree(tree)
    assert tree.nbytes == 0 and not tree.root.children


@pytest.mark.parametrize(
    ("word", "depth", "known"),
    [
        ((1, 2, 3, 4), 4, 4),
        ((1, 2, 3, 4, 9), 4, 4),
        ((1, 2, 9), 0, 2),
        ((1, 2, 3), 0, 3),
        ((1, 2, 3, 4, 5, 6, 7), 6, 6),
        ((9,), 0, 0),
    ],
)
def test_match_finds_the_deepest_snapshot_and_where_the_ids_part(word, depth, known):
    tree = RadixTree(3)
    insert(tree, ids(1, 2, 3, 4))
    insert(tree, ids(1, 2, 3, 4, 5, 6))
    node, actual = tree.match(ids(*word))
    assert (node.depth, actual) == (depth, known)


def test_shared_tokens_are_stored_once_and_what_no_snapshot_needs_is_not():
    tree = RadixTree(4)
    insert(tree, ids(*range(1, 11)))
    kept = {len(node.tokens): node.window.length for node in tree.nodes()}
    assert kept == {0: 0, 10: 4}
    insert(tree, ids(*range(1, 9), 20))
    kept = [(len(node.tokens), node.window.length) for node in tree.nodes()]
    assert sorted(kept) == [(0, 0), (1, 1), (2, 2), (8, 3)]


def test_a_second_insertion_changes_nothing():
    tree = RadixTree(4)
    first = insert(tree, ids(1, 2, 3))
    state = first.snapshot
    assert insert(tree, ids(1, 2, 3)) is first and first.snapshot is state
