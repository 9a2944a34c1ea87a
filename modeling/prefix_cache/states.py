"""A ``RecurrentGemmaCache`` taken apart: keys and values, which prefixes share by the token, and the recurrent states.

Whatever is kept is copied, and so is whatever is handed out: a cache that goes on, in place or not, changes nothing
here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling.cache import AttentionState, RecurrentGemmaCache, RecurrentState


@dataclass(frozen=True)
class Window:
    """Keys and values of ``length`` consecutive tokens: (1, G, length, D) each, attention layer by attention layer.

    A model without attention has windows of any length that hold no tensor.
    """

    length: int
    layers: tuple[Tensor, ...]

    @cached_property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    def slice(self, begin: int, end: int) -> "Window":
        """A view of the tokens from ``begin`` to ``end``."""
        return Window(end - begin, tuple(layer[:, :, begin:end] for layer in self.layers))

    def last(self, length: int) -> "Window":
        """A view of the last ``length`` tokens."""
        return self.slice(self.length - length, self.length)

    def copy(self) -> "Window":
        """The same in memory of its own, so that nothing larger is kept alive."""
        return Window(self.length, tuple(layer.clone(memory_format=torch.contiguous_format) for layer in self.layers))


NO_WINDOW = Window(0, ())


def join(windows: Sequence[Window]) -> Window:
    """Consecutive windows as one, copied; empty ones may be ``NO_WINDOW``."""
    filled = [window for window in windows if window.length]
    if not filled:
        return NO_WINDOW
    layers = zip(*(window.layers for window in filled), strict=True)
    return Window(sum(window.length for window in filled), tuple(torch.cat(parts, dim=2) for parts in layers))


@dataclass(frozen=True)
class Snapshot:
    """What a prefix remembers besides its window: one state a recurrent layer."""

    states: tuple[RecurrentState, ...]

    @cached_property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for state in self.states for tensor in state)

    def copy(self) -> "Snapshot":
        """The same in memory of its own."""
        return Snapshot(tuple(RecurrentState(*(tensor.clone() for tensor in state)) for state in self.states))


def take_apart(cache: RecurrentGemmaCache) -> tuple[Snapshot, Window]:
    """The states and the window of a cache of one row that has read something: views, to be copied where kept."""
    states, layers = [], []
    for layer in cache.layers:
        state = layer.load()
        if isinstance(state, RecurrentState):
            states.append(RecurrentState(*(tensor.detach() for tensor in state)))
        else:
            assert isinstance(state, AttentionState)
            layers += [tensor.detach() for tensor in state]
    return Snapshot(tuple(states)), Window(layers[0].shape[2] if layers else 0, tuple(layers))


def put_together(
    config: RecurrentGemmaConfig, tokens: Tensor, snapshot: Snapshot, windows: Sequence[Window]
) -> RecurrentGemmaCache:
    """A cache of one row that has read ``tokens``, in new tensors.

    Args:
        config: The model's.
        tokens: (L,) ids read.
        snapshot: The states after them.
        windows: Their last min(W, L) keys and values, in consecutive parts.
    """
    cache = RecurrentGemmaCache(config)
    states, layers = iter(snapshot.states), zip(*(window.layers for window in windows), strict=True)
    device = None
    for layer, layer_type in zip(cache.layers, config.layers_block_type, strict=True):
        if layer_type == "linear_attention":
            state = RecurrentState(*(tensor.clone() for tensor in next(states)))
            layer.store(state)
            device = device or state.rg_lru.device
        else:
            key, value = (torch.cat(next(layers), dim=2) for _ in range(2))
            layer.store(AttentionState(key, value))
            device = device or key.device
    depth = tokens.shape[0]
    cache.advance(depth, torch.tensor([depth], device=device), tokens[None].to(device, torch.long))
    return cache
