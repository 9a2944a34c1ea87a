"""Intervals of mean losses: a bootstrap over blocks of text, since neighbouring tokens are not independent."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# What an interval covers.
LEVEL = 0.95
# Resamples drawn together: their counts of every block are in memory at once.
_TOGETHER = 250


class Interval(NamedTuple):
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


class BlockBootstrap:
    """Percentile intervals of means over tokens, from resampling whole blocks of the text.

    A block that is drawn brings all of its tokens, at whichever position and in whichever excerpt they were read, so
    that a text which is read several times counts as one text. For the difference of two models, give the difference of
    their losses token by token: the interval is then paired.

    Args:
        blocks: Of any shape, int64: number of the block that each token belongs to, from 0 on.
        resamples: How many, at least 100.
        seed: Of the draws.

    Raises:
        ValueError: Other numbers, or too few resamples.

    Source: Künsch, "The jackknife and the bootstrap for general stationary observations", 1989; means as ratios of sums
        over clusters as in Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8.
    """

    def __init__(self, blocks: Tensor, *, resamples: int = 2000, seed: int = 0) -> None:
        if blocks.dtype != torch.int64 or not blocks.numel() or bool((blocks < 0).any()):
            raise ValueError(
                f"blocks: expected int64 numbers from 0 on, got {blocks.dtype} of shape {tuple(blocks.shape)}."
            )
        if resamples < 100:
            raise ValueError(f"resamples: expected at least 100, which the ends of an interval need, got {resamples}.")
        self.blocks, self.resamples, self.seed = blocks, resamples, seed
        self.count = int(blocks.max()) + 1

    def mean(self, values: Tensor, where: Tensor | None = None) -> Interval:
        """The mean of ``values``, of the shape of ``blocks``, over all tokens or those ``where`` is true.

        Raises:
            ValueError: Another shape, values that are not finite, or fewer than two blocks among the tokens.
        """
        return self._interval(torch.stack(self._per_block(values, where)), lambda sums: sums[0] / sums[1])

    def change(self, values: Tensor, where: Tensor, reference: Tensor) -> Interval:
        """The mean ``where`` that is true less that where ``reference`` is, of the same resampled blocks.

        Raises:
            ValueError: As in ``mean``; a resample leaves one side without a token.
        """
        parts = torch.stack((*self._per_block(values, where), *self._per_block(values, reference)))
        return self._interval(parts, lambda sums: sums[0] / sums[1] - sums[2] / sums[3])

    def _per_block(self, values: Tensor, where: Tensor | None) -> tuple[Tensor, Tensor]:
        for name, given in (("values", values), ("where", where)):
            if given is not None and given.shape != self.blocks.shape:
                raise ValueError(
                    f"{name}: expected the shape of blocks, {tuple(self.blocks.shape)}, got {tuple(given.shape)}."
                )
        blocks = self.blocks
        values, blocks = (values.flatten(), blocks.flatten()) if where is None else (values[where], blocks[where])
        sums = torch.zeros(self.count, dtype=torch.float64).index_add_(0, blocks, values.double())
        return sums, torch.bincount(blocks, minlength=self.count).double()

    def _interval(self, parts: Tensor, statistic: Callable[[Tensor], Tensor]) -> Interval:
        """The interval of ``statistic``, a function of the totals of ``parts`` (n, blocks): sums and counts in turn."""
        parts = parts[:, (parts[1::2] > 0).any(dim=0)]
        blocks = parts.shape[1]
        if blocks < 2:
            raise ValueError(
                f"blocks: expected at least 2 among the tokens of a mean, got {blocks}; take more excerpts, smaller "
                "blocks or wider bins."
            )
        generator = torch.Generator().manual_seed(self.seed)
        found = []
        for begin in range(0, self.resamples, _TOGETHER):
            drawn = torch.randint(blocks, (min(_TOGETHER, self.resamples - begin), blocks), generator=generator)
            times = torch.zeros(drawn.shape, dtype=torch.float64)
            times.scatter_add_(1, drawn, torch.ones_like(times))
            found.append(statistic(parts @ times.T))
        resampled = torch.cat(found)
        if not bool(resampled.isfinite().all()):
            raise ValueError(
                f"values: expected finite ones, and tokens on both sides of a comparison in every resample of {blocks} "
                "blocks, got a mean that is not finite; take more excerpts, smaller blocks or wider bins."
            )
        ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
        low, high = torch.quantile(resampled, ends).tolist()
        return Interval(statistic(parts.sum(dim=1)).item(), low, high)
