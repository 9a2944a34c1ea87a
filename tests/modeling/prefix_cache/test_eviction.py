"""Which snapshot goes: by hand, and the work by counting the model's own products."""

import pytest
import torch

from benchmarks.floor import MatrixProducts
from recurrent_gemma.modeling import PrefixCache
from recurrent_gemma.modeling.prefix_cache.eviction import choose_victim, prefill_flops
from tests.modeling.models import tiny_config, tiny_model
from tests.modeling.prefix_cache.trees import paths


@pytest.mark.parametrize("fields", [{}, {"num_key_value_heads": 2}, {"block_types": ["recurrent"]}, {"lru_width": 32}])
def test_flops_are_those_of_the_models_products(fields):
    model = tiny_model(tiny_config(**fields))
    # The logits of one token, which the floor counts, are no part of a prefill.
    head = 2 * 32 * 97
    for length in (1, 7, 8, 60):
        counted = MatrixProducts(model, length, logits=1).flops - head
        # The floor rounds the keys a query sees to a whole number in each of its blocks.
        assert prefill_flops(model.config, 0, length) == pytest.approx(counted, rel=2e-3)
    assert prefill_flops(model.config, 0, 60) == sum(prefill_flops(model.config, i, i + 20) for i in (0, 20, 40))


@pytest.fixture
def prefixes():
    """A long prefix, used first; two ends below it, and a short one by itself, used last."""
    model, torch_ids = tiny_model(), torch.arange(3, 60)
    prefixes = PrefixCache(model.config, max_bytes=10**6)
    for ids in (torch_ids[:40], torch_ids[:42], torch_ids[:45], torch.tensor([90, 91])):
        prefixes.prefill(model, ids)
    return prefixes


def order(prefixes, policy):
    """Depths of the snapshots in the order in which they go."""
    gone = []
    while prefixes._tree.snapshots():
        victim = choose_victim(prefixes._tree, prefixes.config, policy)
        gone.append(victim.depth)
        prefixes._tree.remove(victim)
    return gone


def test_lru_goes_by_the_last_use_alone(prefixes):
    assert order(prefixes, "lru") == [40, 42, 45, 2]
    assert not paths(prefixes._tree)


def test_work_per_byte_keeps_a_long_prefix_that_was_used_longer_ago(prefixes):
    gone = order(prefixes, "flops_per_byte")
    assert gone.index(42) < gone.index(40)


def test_a_prefix_that_is_used_again_outlives_those_that_are_not():
    model = tiny_model()
    system = torch.arange(3, 60)
    for policy in ("flops_per_byte", "lru"):
        prefixes = PrefixCache(model.config, max_bytes=8000, policy=policy)
        prefixes.prefill(model, system)
        for first in range(60, 90):
            prompt = torch.cat((system, torch.tensor([first, 5, 6])))
            assert prefixes.match(prompt) == len(system)
            prefixes.prefill(model, prompt)
        assert prefixes.statistics.evictions > 20
