"""Which snapshot goes first: that which saves the least work for each byte it takes and for how long it was of no use.

After Marconi (arXiv 2411.19379, section 4.2), which adds recency to work saved per byte, each scaled over the
candidates, with a weight tuned on the workload. Here the work per byte is divided by the time since the last use: it
needs no weight, and one snapshot of extreme efficiency does not make all others alike. Any snapshot is a candidate,
since removing one that has others below it takes nothing from them.
"""

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling.prefix_cache.radix_tree import Node, RadixTree

POLICIES = ("flops_per_byte", "lru")


def choose_victim(tree: RadixTree, config: RecurrentGemmaConfig, policy: str) -> Node:
    """The node whose snapshot to remove; the tree has at least one.

    Args:
        tree: The snapshots.
        config: The model's, which says what a token costs.
        policy: ``"flops_per_byte"``, or ``"lru"`` for the one used longest ago.
    """
    candidates = tree.snapshots()
    if policy == "lru":
        return min(candidates, key=lambda node: node.last_used)
    now = 1 + max(node.last_used for node in candidates)

    def worth(node: Node) -> float:
        work = prefill_flops(config, _depth_above(node), node.depth)
        # One without recurrent states, in the window of others, frees nothing by going.
        return work / max(tree.freed_bytes(node), 1) / (now - node.last_used)

    return min(candidates, key=worth)


def prefill_flops(config: RecurrentGemmaConfig, begin: int, end: int) -> int:
    """Multiplications and additions of the matrix products that read tokens ``begin`` to ``end``, without logits."""
    width, recurrent_width = config.hidden_size, config.lru_width
    recurrent_layers = config.layers_block_type.count("linear_attention")
    attention_layers = config.num_hidden_layers - recurrent_layers
    recurrent = 3 * width * recurrent_width + 2 * recurrent_width**2 // config.num_attention_heads
    projections = 2 * width**2 + 2 * width * config.num_key_value_heads * config.head_dim
    weights = (
        recurrent_layers * recurrent
        + attention_layers * projections
        + config.num_hidden_layers * 3 * width * config.mlp_width
    )
    pairs = _keys_seen(end, config.attention_window_size) - _keys_seen(begin, config.attention_window_size)
    return 2 * (end - begin) * weights + attention_layers * 4 * pairs * width


def _keys_seen(tokens: int, window: int) -> int:
    """Keys that the first ``tokens`` queries see together: token t sees min(t, W) + 1."""
    growing = min(tokens, window)
    return growing * (growing + 1) // 2 + (tokens - growing) * (window + 1)


def _depth_above(node: Node) -> int:
    """Depth of the nearest snapshot above."""
    above = node.parent
    while above is not None and above.snapshot is None:
        above = above.parent
    return 0 if above is None else above.depth
