"""Perplexity against position: whether a model reads on as well at token 30,000 as at token 300."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from recurrent_gemma.evaluation.long_context.bootstrap import BlockBootstrap, Interval
from recurrent_gemma.evaluation.long_context.reading import excerpts, token_losses
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM


@dataclass(frozen=True)
class PositionBin:
    """The tokens at some positions; the first one that is predicted has position 1.

    Attributes:
        first, last: The positions, both included.
        tokens: How many tokens, over all excerpts.
        loss: Their mean negative log-likelihood in nats.
    """

    first: int
    last: int
    tokens: int
    loss: Interval

    @property
    def perplexity(self) -> Interval:
        """exp of the loss, and of the ends of its interval."""
        return Interval(*map(math.exp, self.loss))


def log_spaced_bins(length: int, *, first: int = 8) -> list[range]:
    """Positions 1 to ``length`` in bins that end before ``first`` and before each doubling of it.

    The last bin takes in what would fill less than half of another.

    Raises:
        ValueError: A number is out of its range.
    """
    if length < 1 or first < 2:
        raise ValueError(f"length, first: expected at least 1 and 2, got {length} and {first}.")
    edges = [1, min(first, length + 1)]
    while edges[-1] <= length:
        edges.append(min(2 * edges[-1], length + 1))
    if len(edges) > 2 and edges[-1] - edges[-2] < edges[-2] / 2:
        del edges[-2]
    return [range(begin, end) for begin, end in pairwise(edges)]


def perplexity_by_position(
    model: RecurrentGemmaForCausalLM,
    text_ids: Sequence[int] | Tensor,
    *,
    length: int | None = None,
    count: int = 16,
    bos_token_id: int | None = None,
    bins: Sequence[range] | None = None,
    block_size: int = 512,
    resamples: int = 2000,
    seed: int = 0,
    **reading: Any,
) -> list[PositionBin]:
    """The loss of a long text against position, read ``count`` times from places at equal distances in it.

    Args:
        model: In eval mode.
        text_ids: (N,) ids of the text, without special tokens: ``tokenizer(text, add_special_tokens=False).input_ids``.
            Several documents are best joined, so that no excerpt ends with one.
        length: Tokens of an excerpt; None: N. See :func:`excerpts`, also for the two below.
        count: Excerpts.
        bos_token_id: Token before each of them, if any.
        bins: Positions to take together; None: ``log_spaced_bins``.
        block_size: Tokens of a block of the bootstrap. Longer than what makes neighbouring tokens alike; many fewer
            than the text has.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
        **reading: ``chunk_size``, ``batch_size``, ``reset_every``, ... of :func:`token_losses`.

    Returns:
        One entry a bin.

    Raises:
        TypeError, ValueError: As in :func:`excerpts`, :func:`token_losses` and :class:`BlockBootstrap`; a bin that has
            positions beyond the excerpts' length.
    """
    if block_size < 1:
        raise ValueError(f"block_size: expected at least 1, got {block_size}.")
    read = excerpts(text_ids, count=count, length=length, bos_token_id=bos_token_id)
    bins = log_spaced_bins(read.places.shape[1]) if bins is None else bins
    bootstrap = BlockBootstrap(read.places // block_size, resamples=resamples, seed=seed)
    for positions in bins:
        _expect_within(positions, read.places.shape[1])
    return bin_losses(token_losses(model, read.ids, **reading), read.positions, bins, bootstrap)


def bin_losses(
    losses: Tensor, positions: Tensor, bins: Sequence[range], bootstrap: BlockBootstrap
) -> list[PositionBin]:
    """One entry a bin, of ``losses`` and ``positions`` of any one shape; what ``perplexity_by_position`` gives back."""
    found = []
    for span in bins:
        where = (positions >= span[0]) & (positions <= span[-1])
        found.append(PositionBin(span[0], span[-1], int(where.sum()), bootstrap.mean(losses, where)))
    return found


def _expect_within(positions: range, length: int) -> None:
    if positions.step != 1 or not positions or positions[0] < 1 or positions[-1] > length:
        raise ValueError(f"bins: expected non-empty ranges of positions within 1 to {length}, got {positions}.")
