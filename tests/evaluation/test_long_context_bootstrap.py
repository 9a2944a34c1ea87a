"""Intervals cover what they say, pair what is paired, and bins hold the positions that they name."""

import math

import pytest
import torch
from torch import Tensor

from recurrent_gemma.evaluation.long_context import (
    BlockBootstrap,
    Interval,
    excerpts,
    log_spaced_bins,
    perplexity_by_position,
    token_losses,
)
from recurrent_gemma.evaluation.long_context.perplexity import bin_losses
from tests.modeling.models import tiny_model

BLOCKS, PER_BLOCK = 40, 25


def correlated(generator: torch.Generator, mean: float) -> Tensor:
    """(BLOCKS * PER_BLOCK,) values around ``mean``; those of a block share most of what they differ by."""
    shared = torch.randn(BLOCKS, 1, generator=generator)
    return (mean + shared + 0.3 * torch.randn(BLOCKS, PER_BLOCK, generator=generator)).flatten()


def coverage(block_size: int, trials: int = 400) -> float:
    """Share of intervals that hold the known mean."""
    generator = torch.Generator().manual_seed(0)
    bootstrap = BlockBootstrap(torch.arange(BLOCKS * PER_BLOCK) // block_size, resamples=400)
    found = (bootstrap.mean(correlated(generator, 2.0)) for _ in range(trials))
    return sum(low <= 2.0 <= high for _, low, high in found) / trials


def test_intervals_cover_the_known_mean_and_those_of_single_tokens_do_not():
    # 95 % less what percentiles of 40 blocks lack, and four standard errors of 400 trials: 1.1 % each.
    assert 0.88 < coverage(PER_BLOCK) < 0.99
    assert coverage(1) < 0.5


def test_means_and_changes_are_those_of_the_tokens():
    values = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    bootstrap = BlockBootstrap(torch.arange(200).view(4, 50) // 10)
    where = torch.zeros(4, 50, dtype=torch.bool)
    where[:, 10:30] = True
    assert bootstrap.mean(values).mean == pytest.approx(values.double().mean().item())
    assert bootstrap.mean(values, where).mean == pytest.approx(values[:, 10:30].double().mean().item())
    change = bootstrap.change(values, where, ~where)
    assert change.mean == pytest.approx((values[where].double().mean() - values[~where].double().mean()).item())
    assert change.low < change.mean < change.high
    assert bootstrap.mean(values) == bootstrap.mean(values) != BlockBootstrap(bootstrap.blocks, seed=1).mean(values)


def test_differences_of_paired_values_are_narrow():
    generator = torch.Generator().manual_seed(2)
    bootstrap = BlockBootstrap(torch.arange(BLOCKS * PER_BLOCK) // PER_BLOCK)
    one = correlated(generator, 2.0)
    other = one + 0.01 + 0.001 * torch.randn(one.shape, generator=generator)
    paired = bootstrap.mean(other - one)
    assert paired.excludes_zero and paired.high - paired.low < 1e-3
    alone = bootstrap.mean(one)
    assert alone.high - alone.low > 100 * (paired.high - paired.low)
    assert not Interval(0.1, -0.1, 0.3).excludes_zero and Interval(-0.2, -0.3, -0.1).excludes_zero


def test_a_text_that_is_read_twice_is_one_text():
    generator = torch.Generator().manual_seed(3)
    values, blocks = correlated(generator, 0.0), torch.arange(BLOCKS * PER_BLOCK) // PER_BLOCK
    once = BlockBootstrap(blocks).mean(values)
    twice = BlockBootstrap(torch.stack((blocks, blocks))).mean(torch.stack((values, values)))
    assert twice == pytest.approx(once)


def test_what_cannot_be_resampled_raises():
    bootstrap = BlockBootstrap(torch.arange(20)[None] // 10)
    values, where = torch.randn(1, 20), torch.arange(20)[None] < 10
    with pytest.raises(ValueError, match="at least 2"):
        bootstrap.mean(values, where)
    with pytest.raises(ValueError, match="both sides"):
        bootstrap.change(values, where, ~where)
    with pytest.raises(ValueError, match="not finite"):
        bootstrap.mean(values / 0)
    with pytest.raises(ValueError, match="values: expected the shape"):
        bootstrap.mean(values[0])
    with pytest.raises(ValueError, match="where: expected the shape"):
        bootstrap.mean(values, where[0])
    with pytest.raises(ValueError, match="from 0 on"):
        BlockBootstrap(torch.tensor([-1, 2]))
    with pytest.raises(ValueError, match="at least 100"):
        BlockBootstrap(torch.arange(3), resamples=99)


@pytest.mark.parametrize("length", [1, 5, 7, 8, 9, 100, 1024, 43_162])
def test_bins_are_every_position_once(length: int):
    bins = log_spaced_bins(length)
    assert [position for span in bins for position in span] == list(range(1, length + 1))
    assert all(2 * len(span) >= span[0] for span in bins)


def test_bins_by_hand():
    assert log_spaced_bins(40) == [range(1, 8), range(8, 16), range(16, 41)]
    assert log_spaced_bins(50) == [range(1, 8), range(8, 16), range(16, 32), range(32, 51)]
    assert log_spaced_bins(5, first=2) == [range(1, 2), range(2, 4), range(4, 6)]
    with pytest.raises(ValueError, match="expected at least"):
        log_spaced_bins(0)


def test_binned_losses_are_the_planted_ones():
    # A token's loss is its position, whichever excerpt it is in.
    read = excerpts(torch.arange(64), count=8)
    found = bin_losses(read.positions.float(), read.positions, log_spaced_bins(64), BlockBootstrap(read.places // 4))
    assert [(b.first, b.last, b.tokens) for b in found] == [(1, 7, 56), (8, 15, 64), (16, 31, 128), (32, 64, 264)]
    assert [b.loss.mean for b in found] == pytest.approx([4, 11.5, 23.5, 48])
    assert found[0].perplexity.mean == pytest.approx(math.exp(4))
    assert all(b.loss.low <= b.loss.mean <= b.loss.high for b in found)


def test_perplexity_by_position_is_that_of_the_losses():
    model, text = tiny_model(), torch.randint(3, 97, (60,), generator=torch.Generator().manual_seed(4))
    read = excerpts(text, count=6, length=30, bos_token_id=2)
    losses = token_losses(model, read.ids)
    options = {"count": 6, "length": 30, "bos_token_id": 2, "block_size": 5, "resamples": 200}
    found = perplexity_by_position(model, text, bins=[range(3, 5), range(20, 31)], **options, batch_size=4)
    assert [b.tokens for b in found] == [12, 66]
    for entry, columns in zip(found, (slice(2, 4), slice(19, 30)), strict=True):
        assert entry.loss.mean == pytest.approx(losses[:, columns].double().mean().item(), abs=1e-5)
    by_default = perplexity_by_position(model, text, **options)
    assert [(b.first, b.last) for b in by_default] == [(1, 7), (8, 15), (16, 30)]
    with pytest.raises(ValueError, match="within 1 to 30"):
        perplexity_by_position(model, text, bins=[range(25, 32)], **options)
    with pytest.raises(ValueError, match="block_size"):
        perplexity_by_position(model, text, count=2, block_size=0)
