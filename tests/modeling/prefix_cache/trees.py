"""What a prefix cache must hold at any time, recomputed from its tensors by rules of their own."""

from recurrent_gemma.modeling import PrefixCache
from recurrent_gemma.modeling.prefix_cache.radix_tree import RadixTree


def tensors(tree: RadixTree) -> list:
    """Every tensor of a tree."""
    found = []
    for node in tree.nodes():
        found += [node.tokens, *node.window.layers]
        found += [t for state in node.snapshot.states for t in state] if node.snapshot else []
    return found


def storage_bytes(tree: RadixTree) -> int:
    """Bytes of memory kept alive: whole storages, so that a small view of a large tensor counts as large."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors(tree)}
    return sum(storages.values())


def paths(tree: RadixTree) -> dict[tuple[int, ...], object]:
    """Tokens -> node, for every node with a snapshot."""
    return {tuple(tree.ids(node).tolist()): node for node in tree.snapshots()}


def check_tree(tree: RadixTree, *, attention: bool = True) -> None:
    """The tree is a radix tree, holds what its snapshots need, and nothing else."""
    for node in tree.nodes():
        below = [other for other in tree.snapshots() if node in _line(other)]
        assert node.nearest == min((other.depth for other in below), default=float("inf"))
        if node is tree.root:
            continue
        assert node.parent.children[int(node.tokens[0])] is node
        assert len(node.tokens) > 0 and node.depth == node.parent.depth + len(node.tokens)
        assert node.snapshot is not None or len(node.children) > 1
        places = range(node.parent.depth + 1, node.depth + 1)
        needed = [p for p in places if any(other.depth - tree.window < p for other in below)]
        assert node.window.length == (len(needed) if attention else 0)
    assert tree.nbytes == storage_bytes(tree)


def check(prefixes: PrefixCache) -> None:
    """``check_tree``, and the bound holds."""
    check_tree(prefixes._tree, attention="sliding_attention" in prefixes.config.layers_block_type)
    assert storage_bytes(prefixes._tree) == prefixes.nbytes <= prefixes.max_bytes


def _line(node) -> list:
    return [node] if node.parent is None else [node, *_line(node.parent)]
