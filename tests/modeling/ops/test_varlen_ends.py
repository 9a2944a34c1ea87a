"""Packed sequences at their shortest: every way to have three of no, one or two tokens, against the definition."""

import itertools

import pytest
import torch

from recurrent_gemma.modeling import ops
from tests.tolerances import assert_close_by_max, forward_tolerance

WIDTH, TAPS, SEQUENCES, PAGES = 3, 3, 3, 6
SLOTS = torch.tensor([1, 4, 2])
BAR = forward_tolerance(torch.float32, 2 * TAPS)
LENGTHS = [lengths for lengths in itertools.product((0, 1, 2), repeat=SEQUENCES) if sum(lengths)]


def draw(op, tokens):
    """Arguments without the memory, and the shape of a sequence's memory."""
    if op == "rg_lru":
        return [torch.randn(tokens, WIDTH) for _ in range(3)] + [torch.randn(WIDTH)], (WIDTH,)
    return [torch.randn(tokens, WIDTH), torch.randn(WIDTH, TAPS), torch.randn(WIDTH)], (TAPS - 1, WIDTH)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("op", ["rg_lru", "causal_conv1d"])
def test_outputs_and_memories_are_those_of_the_definition(op, lengths):
    arguments, shape = draw(op, sum(lengths))
    memory = torch.randn(SEQUENCES, *shape)
    cu_seqlens = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    run, serve = getattr(ops, f"{op}_varlen"), getattr(ops, f"{op}_varlen_")
    for given in (None, torch.zeros(3).bool(), torch.ones(3).bool(), torch.tensor([True, False, True])):
        for options in ({}, {"has_initial": given}) if given is not None else ({},):
            before = memory if options else None
            found, expected = (
                run(*arguments, before, cu_seqlens=cu_seqlens, impl=impl, **options) for impl in (None, "reference")
            )
            for actual, wanted in zip(found, expected, strict=True):
                assert actual.dtype == wanted.dtype
                assert_close_by_max(actual, wanted, BAR, f"{options}")
        if given is None:
            continue
        pages = torch.randn(PAGES, *shape)
        pages[SLOTS] = memory
        after = pages.clone()
        y = serve(*arguments, after, cu_seqlens=cu_seqlens, slots=SLOTS, has_initial=given)
        # A sequence without tokens leaves its page as it is, and nobody's page is touched.
        kept = pages.clone()
        fed = torch.tensor(lengths) > 0
        kept[SLOTS[fed]] = expected[1][fed]
        assert_close_by_max(y, expected[0], BAR, "served")
        assert_close_by_max(after, kept, BAR, "pages")
