"""What the tests of the benchmarks share."""

import pytest

from benchmarks.models import SIZES, build_pair


@pytest.fixture(scope="session")
def in_tree_is_exact() -> None:
    """Skips where Transformers' own class rotates whole heads (as of 5.16): it computes another function there."""
    in_tree = build_pair(SIZES["tiny"]).in_tree
    rotated = 2 * in_tree.model.layers[-1].temporal_block.rotary_emb.inv_freq.numel()
    if rotated != in_tree.config.head_dim // 2:
        pytest.skip("this release of Transformers rotates whole heads: its model has no equal weights to compare")
