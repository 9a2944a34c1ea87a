"""How the two ops on packed sequences are called, one class each, so that one test serves both."""

import itertools

import pytest
import torch

from recurrent_gemma.modeling.ops import (
    causal_conv1d,
    causal_conv1d_varlen,
    causal_conv1d_varlen_,
    rg_lru,
    rg_lru_varlen,
    rg_lru_varlen_,
)
from tests.modeling.ops.test_causal_conv1d import draw as draw_conv
from tests.modeling.ops.test_rg_lru import draw as draw_rg_lru

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TAPS = 4
WIDTH = 10  # with small tiles a block of channels and a part of one


def bounds(lengths):
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=DEVICE)


class RgLru:
    """How the recurrence is called."""

    name, torch_backend = "rg_lru", "chunked"
    packed, serve = staticmethod(rg_lru_varlen), staticmethod(rg_lru_varlen_)
    memory = (WIDTH,)

    @staticmethod
    def draw(tokens, sequences, dtype):
        """Tensors over tokens, parameters, and a memory for each sequence."""
        x, input_gate, recurrence_gate, a_param, _ = draw_rg_lru(1, tokens, WIDTH, dtype)
        h0 = torch.randn(sequences, WIDTH, dtype=torch.promote_types(dtype, torch.float32))
        return [t.to(DEVICE) for t in (x[0], input_gate[0], recurrence_gate[0], a_param, h0)]

    @staticmethod
    def alone(x, input_gate, recurrence_gate, a_param, memory, initial):
        starts = torch.zeros(1, x.shape[0], dtype=torch.bool, device=DEVICE)
        starts[:, 0] = not initial
        y, last = rg_lru(*(t[None] for t in (x, input_gate, recurrence_gate)), a_param, memory[None], starts=starts)
        return y[0], last[0]


class Conv:
    """How the convolution is called."""

    name, torch_backend = "causal_conv1d", "shifted"
    packed, serve = staticmethod(causal_conv1d_varlen), staticmethod(causal_conv1d_varlen_)
    memory = (TAPS - 1, WIDTH)

    @staticmethod
    def draw(tokens, sequences, dtype):
        x, weight, bias, _ = draw_conv(1, tokens, WIDTH, TAPS, dtype)
        history = torch.randn(sequences, TAPS - 1, WIDTH, dtype=torch.float64).to(dtype)
        return [t.to(DEVICE) for t in (x[0], weight, bias, history)]

    @staticmethod
    def alone(x, weight, bias, memory, initial):
        y, last = causal_conv1d(x[None], weight, bias, memory[None] if initial else None)
        return y[0], last[0]


def tokens_of(op, tensors, span):
    """The arguments of a part of the tokens; parameters as they are."""
    count = 3 if op is RgLru else 1
    return [t[span] for t in tensors[:count]] + list(tensors[count:-1])


def narrowed(tensors):
    """Two channels of each."""
    return [t[..., :2].contiguous() if t.shape[-1] == WIDTH else t[:2].contiguous() for t in tensors]


both = pytest.mark.parametrize("op", [RgLru, Conv])
