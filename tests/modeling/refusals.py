"""What tests of bad input share: a call that must fail by name and change no cache."""

import re

import pytest
import torch

from recurrent_gemma.modeling import RecurrentGemmaCache

PAST, LENGTH, ROWS = 9, 6, 2
IDS = torch.arange(1, 1 + ROWS * LENGTH).reshape(ROWS, LENGTH)
ONE_ROW = IDS[:1]
# What the caches below have read, and IDS.
LONG_IDS = torch.cat((torch.full((ROWS, PAST), 5), IDS), dim=1)


def filled_cache(model, rows: int = ROWS) -> RecurrentGemmaCache:
    """A cache that has read ``PAST`` columns, the first of them a pad in the last row."""
    cache = RecurrentGemmaCache(model.config)
    mask = torch.ones(rows, PAST, dtype=torch.long)
    mask[-1, 0] = 0
    with torch.no_grad():
        model(torch.full((rows, PAST), 5), attention_mask=mask, past_key_values=cache)
    return cache


def snapshot(cache: RecurrentGemmaCache) -> list:
    """All that a cache holds, copied."""
    states = [None if layer.load() is None else [t.clone() for t in layer.load()] for layer in cache.layers]
    positions = None if cache.next_position is None else cache.next_position.tolist()
    return [states, positions, cache.columns, [cache.get_seq_length(i) for i in range(5)]]


def same(before: list, after: list) -> bool:
    for old, new in zip(before[0], after[0], strict=True):
        if (old is None) is not (new is None):
            return False
        if old is not None and not all(torch.equal(a, b) for a, b in zip(old, new, strict=True)):
            return False
    return before[1:] == after[1:]


def assert_refused(model, error, message: str, cache: RecurrentGemmaCache | None = None, **inputs) -> None:
    """The call raises ``error`` with a message that holds ``message``; a cache is as it was, and still of use."""
    before = None if cache is None else snapshot(cache)
    options = {} if cache is None else {"past_key_values": cache}
    with pytest.raises(error, match=re.escape(message)):
        model(**inputs, **options)
    if cache is not None:
        assert same(before, snapshot(cache))


def mask_of(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.long)


def changed(tensor: torch.Tensor, value) -> torch.Tensor:
    """A copy of a (B, L) tensor whose second row holds ``value`` in its last column, which is new in a mask too."""
    tensor = tensor.clone()
    tensor[-1, -1] = value
    return tensor
