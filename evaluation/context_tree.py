"""Which tokens many requests share: a radix tree over what a language model has to read to score continuations.

The choices of a question share the question, the questions of a task its few-shot examples. Each node of the tree is a
stretch of tokens that is read once, from the state after the node above it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

# A state that saves fewer tokens is not worth a forward pass of its own.
MIN_SHARED_TOKENS = 16
# Each level that is being read holds the states of its rows.
MAX_LEVELS = 8


class Target(NamedTuple):
    """A token to score: the one that follows ``column`` of a node's tokens."""

    column: int
    token: int
    request: int


@dataclass(eq=False)
class Node:
    """Tokens ``start`` to ``end`` of every sequence through here.

    Attributes:
        sequence: One of those sequences, int32.
        start: Tokens above.
        end: Tokens above and here.
        children: Where the sequences go on.
        requests: Those scored on the way to here and not further down.
        targets: The tokens whose scores this node's columns give.
    """

    sequence: np.ndarray
    start: int
    end: int
    children: list["Node"] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)

    def __len__(self) -> int:
        return self.end - self.start

    @property
    def tokens(self) -> np.ndarray:
        """(end - start,) int32, a view."""
        return self.sequence[self.start : self.end]


def context_tree(
    requests: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    min_shared: int = MIN_SHARED_TOKENS,
    max_levels: int = MAX_LEVELS,
) -> list[Node]:
    """The nodes at the top of the tree over ``requests``.

    Args:
        requests: Tokens of a context and of its continuation, each at least one. A model has to read both but for the
            last token, whose logits nobody asks for.
        min_shared: A stretch of fewer tokens is read once for every sequence through it, without a node of its own.
        max_levels: Nodes on the way to a leaf at most.

    Raises:
        ValueError: A context or a continuation is empty.
    """
    sequences = []
    for index, (context, continuation) in enumerate(requests):
        if not context or not continuation:
            raise ValueError(
                f"requests: expected at least one token of context and one of continuation, got {len(context)} and "
                f"{len(continuation)} in request {index}; begin with BOS."
            )
        sequences.append(np.array([*context, *continuation[:-1]], dtype=np.int32))
    root = _radix_tree(sequences)
    _fold(root, min_shared, max_levels)
    _place_targets(root, sequences, [continuation for _, continuation in requests])
    return root.children


def tokens_to_read(nodes: Sequence[Node]) -> int:
    """Tokens of the tree below ``nodes``, theirs included."""
    return sum(len(node) for node in walk(nodes))


def _radix_tree(sequences: list[np.ndarray]) -> Node:
    # As bytes with the highest first, sequences compare like their tokens, and fast.
    order = sorted(range(len(sequences)), key=lambda index: sequences[index].astype(">i4").tobytes())
    root = Node(np.empty(0, dtype=np.int32), 0, 0)
    path, previous = [root], root.sequence
    for index in order:
        sequence = sequences[index]
        shared, last = _common_length(previous, sequence), None
        while path[-1].end > shared:
            last = path.pop()
        if path[-1].end < shared:
            assert last is not None
            branch = Node(last.sequence, path[-1].end, shared, [last])
            path[-1].children[-1] = branch
            path.append(branch)
        if len(sequence) > shared:
            leaf = Node(sequence, shared, len(sequence))
            path[-1].children.append(leaf)
            path.append(leaf)
        path[-1].requests.append(index)
        previous = sequence
    return root


def _common_length(first: np.ndarray, second: np.ndarray) -> int:
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length


def _fold(root: Node, min_shared: int, max_levels: int) -> None:
    """Leave no inner node that saves too little: its children begin where it began."""
    pending = [(root, 1)]
    while pending:
        node, level = pending.pop()
        kept, waiting = [], node.children[::-1]
        while waiting:
            child = waiting.pop()
            saves = len(child.children) > 1 and child.end - node.end >= min_shared and level < max_levels
            if child.children and not saves:
                # Whatever ends here is scored on the way of one that goes on.
                child.children[0].requests += child.requests
                waiting += child.children[::-1]
                continue
            child.start = node.end
            kept.append(child)
            pending.append((child, level + 1))
        node.children = kept


def _place_targets(root: Node, sequences: list[np.ndarray], continuations: list[Sequence[int]]) -> None:
    pending: list[tuple[Node, tuple[Node, ...]]] = [(child, (child,)) for child in root.children]
    while pending:
        node, path = pending.pop()
        for request in node.requests:
            length, continuation = len(sequences[request]), continuations[request]
            first = length - len(continuation)
            for part in path:
                for column in range(max(part.start, first), min(part.end, length)):
                    part.targets.append(Target(column - part.start, continuation[column - first], request))
        pending += [(child, (*path, child)) for child in node.children]


def walk(nodes: Sequence[Node]) -> Iterator[Node]:
    """``nodes`` and all below them."""
    pending = list(nodes)
    while pending:
        node = pending.pop()
        yield node
        pending += node.children


__all__ = ["MAX_LEVELS", "MIN_SHARED_TOKENS", "Node", "Target", "context_tree", "tokens_to_read", "walk"]
