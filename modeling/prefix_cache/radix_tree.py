"""A radix tree over tokens: keys and values once a token on its edges, recurrent states at some of its nodes.

A snapshot at depth d needs the keys and values of the last W tokens on the way to it, (d - W, d]. All snapshots below
an edge are as deep as its end or deeper, so what they need of it together is the suffix that the nearest of them needs.
Every edge stores that suffix and no more, and so the bytes of the tree are one sum over its nodes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recurrent_gemma.modeling.prefix_cache.states import NO_WINDOW, Snapshot, Window, join


@dataclass(eq=False)
class Node:
    """A prefix of ``depth`` tokens, and the edge that leads to it.

    Attributes:
        tokens: (n,) int32 on the CPU, the ids on the edge from the parent.
        window: Keys and values of the last tokens of the edge.
        snapshot: The recurrent states after the prefix, or None.
        nearest: Depth of the nearest snapshot here or below; infinite without one.
        last_used: Time of the last insertion or reuse of the snapshot.
    """

    tokens: Tensor
    depth: int
    parent: "Node | None" = None
    children: "dict[int, Node]" = field(default_factory=dict)
    window: Window = NO_WINDOW
    snapshot: Snapshot | None = None
    nearest: float = math.inf
    last_used: int = 0

    @property
    def nbytes(self) -> int:
        states = 0 if self.snapshot is None else self.snapshot.nbytes
        return self.tokens.nbytes + self.window.nbytes + states


class RadixTree:
    """Snapshots by the tokens they have read. Not thread-safe.

    Args:
        window: W, the tokens before it that a snapshot needs the keys and values of.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self.root = Node(torch.empty(0, dtype=torch.int32), depth=0)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(node.nbytes for node in self.nodes())

    def nodes(self) -> Iterator[Node]:
        """All nodes, parents before their children."""
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(node.children.values())

    def snapshots(self) -> list[Node]:
        """All nodes with a snapshot."""
        return [node for node in self.nodes() if node.snapshot is not None]

    def match(self, ids: Tensor) -> tuple[Node, int]:
        """The deepest snapshot that has read a prefix of ``ids`` (L,), or the root; and how many ids the tree knows."""
        node, shared = self._descend(ids)
        known = node.depth + shared
        while node.snapshot is None and node.parent is not None:
            node = node.parent
        return node, known

    def ids(self, node: Node) -> Tensor:
        """(depth,) int32, the tokens that lead to ``node``."""
        return torch.cat([step.tokens for step in reversed(list(_upwards(node)))])

    def windows(self, node: Node) -> list[Window]:
        """The last min(W, depth) keys and values before a node with a snapshot, in consecutive parts: views."""
        parts = []
        for step in _upwards(node):
            needed = self._needed(step, node.depth)
            if needed == 0:
                break
            parts.append(step.window.last(needed))
        return parts[::-1]

    def insert(self, ids: Tensor, snapshot: Snapshot, window: Window) -> Node:
        """Store a snapshot after ``ids`` (L,) and what its window adds to that of others; return its node.

        Args:
            ids: Tokens read.
            snapshot: The states after them.
            window: The last min(W, L) keys and values. Of both, what is kept is copied.
        """
        node = self._node_at(ids)
        if node.snapshot is not None:
            return node
        node.snapshot = snapshot.copy()
        for step in _upwards(node):
            missing = self._needed(step, node.depth) - step.window.length
            if missing > 0 and window.layers:
                end = window.length - (node.depth - (step.depth - step.window.length))
                step.window = join((window.slice(end - missing, end), step.window))
        self._refresh(node)
        return node

    def remove(self, node: Node) -> None:
        """Take a node's snapshot away, and all that only it needed."""
        node.snapshot = None
        parent = node.parent
        assert parent is not None
        if node.children:
            self._refresh(node)
            _merge_with_only_child(node)
        else:
            del parent.children[int(node.tokens[0])]
            self._refresh(parent)
        _merge_with_only_child(parent)

    def freed_bytes(self, node: Node) -> int:
        """Bytes that ``remove(node)`` would free."""
        assert node.snapshot is not None
        freed = node.snapshot.nbytes + (0 if node.children else node.tokens.nbytes)
        nearest = min((child.nearest for child in node.children.values()), default=math.inf)
        for step in _upwards(node):
            if step.depth <= node.depth - self.window:
                break
            if step.window.length:
                unneeded = step.window.length - self._needed(step, nearest)
                freed += unneeded * (step.window.nbytes // step.window.length)
            nearest = min(nearest, _nearest_beside(step))
        return freed

    def _needed(self, node: Node, nearest: float) -> int:
        """How many of an edge's last tokens a snapshot at depth ``nearest``, at its end or below, needs."""
        return int(max(0, min(len(node.tokens), node.depth - (nearest - self.window))))

    def _descend(self, ids: Tensor) -> tuple[Node, int]:
        """The deepest node on the way of ``ids``, and how many more ids an edge below it shares with them."""
        node = self.root
        while node.depth < len(ids):
            child = node.children.get(int(ids[node.depth]))
            if child is None:
                break
            shared = _shared(child.tokens, ids[node.depth :])
            if shared < len(child.tokens):
                return node, shared
            node = child
        return node, 0

    def _node_at(self, ids: Tensor) -> Node:
        """The node after exactly ``ids``, made where there is none."""
        node, shared = self._descend(ids)
        if shared:
            node = self._split(node.children[int(ids[node.depth])], shared)
        if node.depth < len(ids):
            leaf = Node(ids[node.depth :].clone(), depth=len(ids), parent=node)
            node.children[int(leaf.tokens[0])] = leaf
            node = leaf
        return node

    def _split(self, node: Node, length: int) -> Node:
        """A new node after the first ``length`` tokens of an edge."""
        assert node.parent is not None
        upper = Node(
            node.tokens[:length].clone(),
            depth=node.parent.depth + length,
            parent=node.parent,
            nearest=node.nearest,
        )
        stored = node.window.length
        below = min(stored, len(node.tokens) - length)
        if below < stored:
            upper.window = node.window.slice(0, stored - below).copy()
            node.window = node.window.last(below).copy()
        node.tokens, node.parent = node.tokens[length:].clone(), upper
        upper.children[int(node.tokens[0])] = node
        upper.parent.children[int(upper.tokens[0])] = upper  # type: ignore[union-attr]
        return upper

    def _refresh(self, node: Node) -> None:
        """Bring ``nearest`` up to date from ``node`` upwards, and drop keys and values that nothing needs any more."""
        for step in (*_upwards(node), self.root):
            below = min((child.nearest for child in step.children.values()), default=math.inf)
            step.nearest = below if step.snapshot is None else step.depth
            needed = self._needed(step, step.nearest)
            if needed < step.window.length:
                step.window = step.window.last(needed).copy() if needed else NO_WINDOW


def _upwards(node: Node) -> Iterator[Node]:
    """The node and all above it, without the root."""
    step = node
    while step.parent is not None:
        yield step
        step = step.parent


def _nearest_beside(node: Node) -> float:
    """Depth of the nearest snapshot at the parent of ``node`` or below it, those at ``node`` and below left out."""
    parent = node.parent
    assert parent is not None
    if parent.nearest < node.nearest:  # without a look at each of what may be many children
        return parent.nearest
    return min((child.nearest for child in parent.children.values() if child is not node), default=math.inf)


def _shared(first: Tensor, second: Tensor) -> int:
    """Length of the common prefix of two (n,) tensors."""
    length = min(len(first), len(second))
    differs = (first[:length] != second[:length]).nonzero()
    return int(differs[0]) if len(differs) else length


def _merge_with_only_child(node: Node) -> None:
    """Make one edge of two where the node between them has no purpose any more."""
    if node.parent is None or node.snapshot is not None or len(node.children) != 1:
        return
    (child,) = node.children.values()
    # Whoever needs a part of the upper edge needs all of the lower one, so this is a suffix again.
    child.window = join((node.window, child.window))
    child.tokens, child.parent = torch.cat((node.tokens, child.tokens)), node.parent
    node.parent.children[int(child.tokens[0])] = child
