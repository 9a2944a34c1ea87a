"""Two models side by side, part after part: how far apart their values are from the embedding to the logits.

At no time are there more weights in memory than one block's as they are computed with, or both embedding tables as
stored.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from recurrent_gemma.conversion_scripts.architecture import Architecture
from recurrent_gemma.conversion_scripts.checkpoints import Checkpoint
from recurrent_gemma.conversion_scripts.parameter_map import Kind, Parameter
from recurrent_gemma.conversion_scripts.sides import DeepMindModel, OurModel, Weights

# Rows of the embedding table that are upcast and multiplied at a time.
_ROWS = 8192
# Hidden states: difference to the largest value. Random models of 6 to 38 blocks and windows of 64 to 2048 measure up
# to 3e-6; the test suite's weights, which keep the recurrence's a close to 1, 8e-6.
_HIDDEN_STATES = 5e-5
# Logits, absolute: the project's promise. Random models of those shapes measure up to 4e-5.
_LOGITS = 1e-4
# Logits beyond this, the published soft cap, carry larger roundings: 4e-5 for 66 in a model without a cap.
_LARGE_LOGITS = 30.0


@dataclass(frozen=True)
class LayerDifference:
    """How far apart the two models are at one place.

    Attributes:
        name: ``"embedding"``, ``"block 3 (attention)"``, ``"final norm"`` or ``"logits"``.
        absolute: Largest absolute difference; infinite where a value is not finite.
        largest: Largest magnitude of DeepMind's values.
        bound: What ``absolute`` may be.
    """

    name: str
    absolute: float
    largest: float
    bound: float

    @property
    def relative(self) -> float:
        """The difference as a part of the largest magnitude."""
        return self.absolute / (self.largest or 1.0)

    @property
    def passed(self) -> bool:
        """Whether the difference is what rounding gives."""
        return self.absolute <= self.bound


class StoredWeights:
    """The weights of an open checkpoint by the names of either code, read when they are asked for.

    Args:
        checkpoint: The checkpoint.
        architecture: What it holds.
        kind: Whose names and layouts to give: ``"flax"`` for DeepMind's code, ``"hf"`` for ours.
        dtype: Dtype that the values are rounded to.
        compute: Dtype in which they are given, which holds those values exactly.
        on_read: Called with each entry that is done.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        architecture: Architecture,
        kind: Kind,
        dtype: torch.dtype,
        compute: torch.dtype,
        on_read: Callable[[Checkpoint, str], None],
    ) -> None:
        self._checkpoint, self._kind, self._dtype, self._on_read = checkpoint, kind, dtype, on_read
        self.compute = compute
        self._embedding, *self._in_blocks, self._final_norm = architecture.parameters
        self.block_types = architecture.block_types

    def embedding(self, *, last_time: bool) -> Tensor:
        """The table (V, D) in the dtype."""
        return self._read(self._embedding, done=last_time)[0]

    def final_norm(self) -> Tensor:
        """The final norm's weight (D,)."""
        return self._read(self._final_norm)[0].to(self.compute)

    def block(self, layer: int) -> Weights:
        """One block's, by their names in it."""
        prefix = f"blocks.{layer}/" if self._kind == "flax" else f"model.layers.{layer}."
        return {
            name.removeprefix(prefix): tensor.to(self.compute)
            for parameter in self._in_blocks
            if parameter.layer == layer
            for name, tensor in zip(parameter.names(self._kind), self._read(parameter), strict=True)
        }

    def _read(self, parameter: Parameter, done: bool = True) -> tuple[Tensor, ...]:
        stored, names = self._checkpoint.kind, parameter.names(self._checkpoint.kind)
        tensors = tuple(self._checkpoint.read(name).to(self._dtype) for name in names)
        if done:
            for name in names:
                self._on_read(self._checkpoint, name)
        if stored == self._kind:
            return tensors
        if (stored, self._kind) == ("torch", "flax"):
            # By the rule of DeepMind's recurrentgemma/conversion.py, so that a mistake in the map's own would show.
            (name,), (tensor,) = names, tensors
            return (tensor.T if name.endswith("weight") and tensor.ndim == 2 else tensor,)
        return parameter.rule.from_hf(self._kind, parameter.rule.to_hf(stored, tensors))


class Side(NamedTuple):
    """A model and the checkpoint it runs on."""

    model: DeepMindModel | OurModel
    weights: StoredWeights


class Comparison(NamedTuple):
    """What :func:`compare` finds: the differences in order, and how many next tokens are the same."""

    layers: tuple[LayerDifference, ...]
    agreeing: int


def compare(theirs: Side, ours: Side, prompts: Sequence[Tensor]) -> Comparison:
    """Run both sides on all prompts.

    Args:
        theirs, ours: DeepMind's side, which is the expected one, and this package's.
        prompts: Ids (1, L) of each.
    """
    sides = (theirs, ours)
    with torch.no_grad():
        states = [_embedded(side, prompts) for side in sides]
        layers = [_hidden_difference("embedding", *states)]
        for layer, block_type in enumerate(theirs.weights.block_types):
            states = [_after_block(side, layer, xs) for side, xs in zip(sides, states, strict=True)]
            layers.append(_hidden_difference(f"block {layer} ({block_type})", *states))
        norms = [side.weights.final_norm() for side in sides]
        normalized = [
            [side.model.final_norm(norm, x) for x in xs] for side, norm, xs in zip(sides, norms, states, strict=True)
        ]
        layers.append(_hidden_difference("final norm", *normalized))
        logits, agreeing = _compare_logits(sides, norms, states)
    return Comparison((*layers, logits), agreeing)


def _embedded(side: Side, prompts: Sequence[Tensor]) -> list[Tensor]:
    # Of the table only the rows that the prompts have.
    ids, places = torch.cat(list(prompts), dim=1).unique(return_inverse=True)
    rows = side.weights.embedding(last_time=False)[ids].to(side.weights.compute)
    return [side.model.embed(rows, part) for part in places.split([prompt.shape[1] for prompt in prompts], dim=1)]


def _after_block(side: Side, layer: int, states: Sequence[Tensor]) -> list[Tensor]:
    weights = side.weights.block(layer)
    return [side.model.block(side.weights.block_types[layer], weights, x) for x in states]


def _compare_logits(
    sides: Sequence[Side], norms: Sequence[Tensor], states: Sequence[Sequence[Tensor]]
) -> tuple[LayerDifference, int]:
    """All logits, those of some rows of the table at a time."""
    tables = [side.weights.embedding(last_time=True) for side in sides]
    differences, magnitudes, agreeing = [], [], 0
    for xs in zip(*states, strict=True):
        best = [_Best(x.shape[1]) for x in xs]
        for first, rows in _row_blocks(tables, xs[0].dtype):
            logits = [
                side.model.logits(norm, part, x)[0] for side, norm, part, x in zip(sides, norms, rows, xs, strict=True)
            ]
            differences.append(_largest_difference(*logits))
            magnitudes.append(logits[0].abs().max().item())
            for so_far, part in zip(best, logits, strict=True):
                so_far.update(part, first)
        agreeing += int((best[0].tokens == best[1].tokens).sum())
    largest = max(magnitudes)
    bound = _LOGITS * max(1.0, largest / _LARGE_LOGITS)
    return LayerDifference("logits", max(differences), largest, bound), agreeing


def _row_blocks(tables: Sequence[Tensor], dtype: torch.dtype) -> Iterator[tuple[int, list[Tensor]]]:
    """(first row, these rows in the dtype) of both tables."""
    for first in range(0, len(tables[0]), _ROWS):
        yield first, [table[first : first + _ROWS].to(dtype) for table in tables]


class _Best:
    """The most likely next token of each position, of the logits seen so far."""

    def __init__(self, length: int) -> None:
        self._values = torch.full((length,), -math.inf, dtype=torch.float64)
        self.tokens = torch.zeros(length, dtype=torch.long)

    def update(self, logits: Tensor, first: int) -> None:
        """Take in logits (L, rows) of the tokens from ``first`` on."""
        values, tokens = logits.max(dim=-1)
        better = values > self._values
        self._values = torch.where(better, values, self._values)
        self.tokens = torch.where(better, tokens + first, self.tokens)


def _hidden_difference(name: str, theirs: Sequence[Tensor], ours: Sequence[Tensor]) -> LayerDifference:
    absolute = max(_largest_difference(*pair) for pair in zip(theirs, ours, strict=True))
    largest = max(x.abs().max().item() for x in theirs)
    return LayerDifference(name, absolute, largest, _HIDDEN_STATES * largest)


def _largest_difference(theirs: Tensor, ours: Tensor) -> float:
    difference = (ours - theirs).abs().max().item()
    return difference if math.isfinite(difference) else math.inf
