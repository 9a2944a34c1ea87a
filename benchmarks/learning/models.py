"""The models that are compared: one shape, one number of parameters (within 5 %), blocks of different kinds.

All are made by ``RecurrentGemmaConfig`` and initialized by the package. Controls are Hawk with one thing taken away, or
one added that the architecture does not have.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.learning.tasks import Task
from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM, layers
from recurrent_gemma.modeling.ops.rg_lru.gates import decay_rate

WIDTH, LAYERS, HEADS, MLP_WIDTH = 64, 3, 4, 128
WINDOW = 8
# Farthest column that a stack of attention blocks of this window can hear of.
REACH = LAYERS * WINDOW


@dataclass(frozen=True)
class Contestant:
    """A model, and how it is trained.

    Attributes:
        block_types: Pattern of the residual blocks.
        wide: The window covers the whole training length, instead of being ``WINDOW``.
        segment: Train in segments of so many columns that hand on the cache; 0 means the whole row at once.
        cut: Detach the cache between segments: no gradient passes from one to the one before.
        signed: Let the recurrence's a reach from -1 to 1; see :func:`signed_recurrence`.
    """

    name: str
    title: str
    block_types: tuple[str, ...] = ("recurrent",)
    wide: bool = False
    segment: int = 0
    cut: bool = False
    signed: bool = False


MODELS = {
    contestant.name: contestant
    for contestant in (
        Contestant("hawk", "Hawk"),
        Contestant("griffin", "Griffin", ("recurrent", "recurrent", "attention")),
        Contestant("local", f"attention, window {WINDOW}", ("attention",)),
        Contestant("wide", "attention, window of the training length", ("attention",), wide=True),
        Contestant("hawk-segments", "Hawk trained in segments", segment=16),
        Contestant("hawk-cut", "Hawk, gradient cut between segments", segment=16, cut=True),
        Contestant("hawk-signed", "Hawk, a from -1 to 1", signed=True),
    )
}
COMPARED = ("hawk", "griffin", "local", "wide")


def build(contestant: Contestant, task: Task, *, seed: int) -> RecurrentGemmaForCausalLM:
    """The contestant's model with random weights, in fp32."""
    config = RecurrentGemmaConfig(
        vocab_size=task.vocab_size,
        hidden_size=WIDTH,
        intermediate_size=2 * MLP_WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        attention_window_size=task.train_length if contestant.wide else WINDOW,
        block_types=list(contestant.block_types),
        pad_token_id=None,
        eos_token_id=None,
        bos_token_id=None,
    )
    torch.manual_seed(seed)
    return RecurrentGemmaForCausalLM(config)


def parameter_count(contestant: Contestant, task: Task) -> int:
    """Parameters of the contestant, tied ones once."""
    return sum(parameter.numel() for parameter in build(contestant, task, seed=0).parameters())


@contextmanager
def signed_recurrence(active: bool) -> Iterator[None]:
    """Within it, if active, the RG-LRU of every layer has 2 a - 1 in place of a, and the multiplier that goes with it.

    The change of arXiv 2411.12537, section 4, which gives a linear recurrence negative eigenvalues. Not this package's
    architecture: it tells whether a task fails for want of them.
    """
    original = layers.rg_lru
    if active:
        layers.rg_lru = _signed_rg_lru
    try:
        yield
    finally:
        layers.rg_lru = original


def _signed_rg_lru(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    h0: Tensor | None,
    *,
    starts: Tensor | None,
    valid: Tensor | None,
    return_states: bool,
) -> tuple[Tensor, Tensor]:
    if h0 is not None or starts is None or valid is not None or return_states:
        raise NotImplementedError("signed_recurrence: expected whole rows from their start, without pads or a cache.")
    a = 2 * torch.exp(decay_rate(a_param) * torch.sigmoid(recurrence_gate)) - 1
    # The derivative of the root has no bound; the package's own op clips it at 1,000.
    multiplier = torch.sqrt((1 - a.square()).clamp(min=2.5e-7))
    a = a.masked_fill(starts[..., None], 0.0)
    inputs = multiplier.masked_fill(starts[..., None], 1.0) * torch.sigmoid(input_gate) * x
    h = torch.zeros_like(x[:, 0])
    states = []
    for decay, new in zip(a.unbind(1), inputs.unbind(1), strict=True):
        h = decay * h + new
        states.append(h)
    return torch.stack(states, dim=1), h
