"""The conversion case reports every step, and that the converter keeps to one shard and two tensors of memory."""

from pathlib import Path

import pytest

from benchmarks.conversion import conversion
from benchmarks.models import Size
from tests.support import require

# 290 MB in bf16, nearly half of it in one tensor.
_SIZE = Size(1024, 6, num_attention_heads=8, attention_window_size=64, vocab_size=65_536)
# What the libraries' own buffers and the allocator's pools may add.
_SLACK = 64 * 2**20


@pytest.mark.slow
def test_memory_is_one_shard_and_two_tensors(tmp_path: Path):
    require("orbax.checkpoint")
    result = conversion(_SIZE, "small", dtype="bfloat16", max_shard_size="60MB", folder=tmp_path)
    assert result.nbytes > 280e6
    assert result.tensor_bytes == result.shard_bytes == 65_536 * 1024 * 2
    assert [(step.source, step.target) for step in result.steps][:2] == [("hf", "flax"), ("flax", "hf-back")]
    assert [step for step in result.steps if step.peak_bytes > step.bound_bytes + _SLACK] == []
    # It sees what is in memory.
    assert all(step.peak_bytes > result.tensor_bytes and step.curve and step.seconds > 0 for step in result.steps)
    assert list(tmp_path.iterdir()) == []
