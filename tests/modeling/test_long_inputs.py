"""Long inputs on CPU go through recurrent blocks and MLPs some rows at a time, which nobody can tell from outside."""

import pytest
import torch

from recurrent_gemma.modeling import RecurrentGemmaCache, layers
from tests.modeling.models import CONFIGS, WINDOW, tiny_config, tiny_model
from tests.tolerances import SPLIT_EQUALS_WHOLE_LOGITS, assert_close

LENGTH = 3 * WINDOW + 5


@pytest.fixture
def five_rows(monkeypatch):
    """Five rows of activations at a time."""
    monkeypatch.setattr(layers, "_CPU_ROWS", 5)
    monkeypatch.setattr(layers, "_CPU_ELEMENTS", 1)


@pytest.fixture
def parts(monkeypatch):
    """Columns that each call of the RG-LRU got."""
    seen, forward = [], layers.RecurrentGemmaRglru.forward

    def counted(self, x, state, context):
        seen.append(x.shape[1])
        return forward(self, x, state, context)

    monkeypatch.setattr(layers.RecurrentGemmaRglru, "forward", counted)
    return seen


def inputs(rows=2):
    """Ids, and a mask and positions with pads and documents that begin anywhere."""
    ids = torch.randint(1, 40, (rows, LENGTH))
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    mask[-1, 11:14] = 0
    return ids, mask


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_some_rows_at_a_time_equal_all_at_once(name, monkeypatch, parts):
    model = tiny_model(tiny_config(**CONFIGS[name]))
    ids, mask = inputs()
    packed = torch.arange(LENGTH) % 13
    options = [{}, {"attention_mask": mask}, {"position_ids": packed.expand(2, -1)}]
    caches, results = [RecurrentGemmaCache(model.config) for _ in range(2)], {}
    for rows in (1 << 20, 5):
        monkeypatch.setattr(layers, "_CPU_ROWS", rows)
        monkeypatch.setattr(layers, "_CPU_ELEMENTS", 1)
        cache = caches.pop()
        results[rows] = [model(ids, **option).logits for option in options]
        results[rows] += [model(ids[:, :9], past_key_values=cache).logits]
        results[rows] += [model(ids[:, 9:], past_key_values=cache).logits, *cache.tensors().values()]
    assert not parts or {LENGTH, 2} <= set(parts)  # two rows of two columns are four of at most five
    for part, whole in zip(results[5], results[1 << 20], strict=True):
        if whole.numel():  # one tap keeps no history
            assert_close(part, whole, SPLIT_EQUALS_WHOLE_LOGITS, name)


def test_gradients_see_all_rows_at_once(five_rows, parts):
    model = tiny_model(tiny_config())
    ids, _ = inputs()
    model(ids)
    assert set(parts) == {LENGTH}


@torch.no_grad()
def test_hooks_see_all_rows_at_once(five_rows, parts):
    model = tiny_model(tiny_config())
    ids, _ = inputs()
    shapes = []
    block = next(layer for layer in model.model.layers if layer.is_recurrent)
    handles = [
        module.register_forward_hook(lambda module, args, output: shapes.append(tuple(args[0].shape[:2])))
        for module in (block.temporal_block.linear_x, block.temporal_block.rg_lru, block.mlp_block.up_proj)
    ]
    model(ids)
    assert shapes == [(2, LENGTH)] * 3
    for handle in handles:
        handle.remove()
    parts.clear()
    model(ids)
    assert len(shapes) == 3 and set(parts) == {2}


@torch.no_grad()
def test_recorded_columns_are_read_at_once(five_rows, parts):
    model = tiny_model(tiny_config())
    ids, _ = inputs(rows=1)
    cache = RecurrentGemmaCache(model.config)
    cache.activate_past_recording()
    model(ids, past_key_values=cache)
    assert set(parts) == {LENGTH}
    cache.crop(-3)
    expected = model(ids, use_cache=False).logits[:, -3:]
    assert_close(model(ids[:, -3:], past_key_values=cache).logits, expected, SPLIT_EQUALS_WHOLE_LOGITS, "after crop")
