"""Which prompts are answered together: those of equal options, below the beginning that they share."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from recurrent_gemma.evaluation.context_tree import context_tree, walk

# A beginning of fewer tokens is read with each prompt.
MIN_SHARED_TOKENS = 64


@dataclass(frozen=True)
class GenerationBatch:
    """Prompts that are answered together.

    Attributes:
        requests: Their places.
        shared: Tokens at the beginning of every one of them, read before; each prompt has at least one more.
    """

    requests: tuple[int, ...]
    shared: tuple[int, ...] = ()


def generation_batches(
    prompts: Sequence[Sequence[int]],
    options: Sequence[dict[str, Any]],
    rows: Callable[[int], int],
    *,
    share: bool = True,
) -> Iterator[GenerationBatch]:
    """Batches over all prompts, the longest first; they depend on prompts and options alone.

    Args:
        prompts: Tokens of each, at least one.
        options: Options of generation; only equal ones go together.
        rows: Prompts of a batch whose longest has so many tokens.
        share: Whether to look for common beginnings.
    """
    groups: dict[str, list[int]] = {}
    for index, option in enumerate(options):
        groups.setdefault(json.dumps(option, sort_keys=True), []).append(index)
    for group in groups.values():
        for shared, members in _below_one_beginning(prompts, group, rows) if share else [((), group)]:
            waiting = sorted(members, key=lambda index: (-len(prompts[index]), list(prompts[index])))
            while waiting:
                count = rows(len(prompts[waiting[0]]))
                yield GenerationBatch(tuple(waiting[:count]), shared)
                waiting = waiting[count:]


def _below_one_beginning(
    prompts: Sequence[Sequence[int]], group: list[int], rows: Callable[[int], int]
) -> list[tuple[tuple[int, ...], list[int]]]:
    """Beginnings with the prompts below them, a batch of them at least; the last one shares nothing.

    Fewer are answered with others: a step takes the same time for one row as for several.
    """
    # The last token of a prompt is left to be read: it gives the first new one.
    long = [index for index in group if len(prompts[index]) > 1]
    rest = [index for index in group if len(prompts[index]) == 1]
    found = []
    pairs = [(prompts[index][:-1], prompts[index][-1:]) for index in long]
    for node in context_tree(pairs, min_shared=MIN_SHARED_TOKENS, max_levels=2):
        members = [long[request] for part in walk([node]) for request in part.requests]
        # A prompt may end on the way to a node that stands where others part.
        below = [index for index in members if node.children and len(prompts[index]) > node.end]
        if below and len(below) >= rows(max(len(prompts[index]) for index in below)):
            found.append((tuple(node.tokens.tolist()), below))
            members = sorted(set(members) - set(below))
        rest += members
    return [*found, ((), sorted(rest))] if rest else found


__all__ = ["MIN_SHARED_TOKENS", "GenerationBatch", "generation_batches"]
