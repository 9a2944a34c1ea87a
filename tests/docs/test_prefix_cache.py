"""docs/prefix_cache.md holds true: its code runs, and its sum is what the cache takes."""

import re
from pathlib import Path

import pytest
import torch

from benchmarks.prefix_cache import hit_rates
from benchmarks.prefix_trace import StatesOnly
from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.configuration.state_size import state_bytes
from recurrent_gemma.modeling import PrefixCache
from tests.support import ROOT, code_blocks, run_warm

PAGE = (ROOT / "docs" / "prefix_cache.md").read_text()


def test_the_examples_run_one_after_the_other(tmp_path: Path):
    code = code_blocks(PAGE, "python")
    assert len(code) == 2
    printed = run_warm("-c", "\n".join([*code, "assert prefixes.statistics.hits == 3"]), cwd=tmp_path).stdout
    assert "hits=2" in printed


def test_the_sum():
    config = RecurrentGemmaConfig.from_preset("recurrentgemma-2b", dtype=torch.bfloat16)
    size = state_bytes(config)
    prefixes = PrefixCache(config, max_bytes=10**10)
    model, system = StatesOnly(config, torch.bfloat16), torch.randint(0, 256_000, (2000,))
    prefixes.prefill(model, system)
    for _ in range(100):
        prefixes.prefill(model, torch.cat((system, torch.randint(0, 256_000, (100,)))))
    assert prefixes.statistics.snapshots == 101
    whole = state_bytes(config, length=2000).total + 100 * state_bytes(config, length=2100).total
    expected = [
        f"{(size.recurrent + size.conv) / 1e6:.2f} MB",
        f"{size.window / 2048 / 1e3:.1f} kB",
        f"{size.window / 1e6:.1f} MB",
        f"{prefixes.nbytes / 1e6:.1f} MB",
        f"{whole / 1e6:.1f} MB",
    ]
    assert re.findall(r"^\|.*\| ([\d.]+ [kM]B) \|$", PAGE, flags=re.MULTILINE) == expected
    assert prefixes.nbytes <= 12_000 * size.window // 2048 + 101 * 500_000


@pytest.mark.slow
def test_the_hit_rates():
    rows = re.findall(r"^\| (\d+) MB \| ([\d.]+) % \| ([\d.]+) % \| ([\d.]+) % \|$", PAGE, flags=re.MULTILINE)
    expected = [
        (
            f"{rates.max_bytes / 1e6:.0f}",
            *(f"{100 * r:.1f}" for r in (rates.flops_per_byte, rates.lru, rates.whole_caches)),
        )
        for rates in hit_rates(200)
    ]
    assert rows == expected
