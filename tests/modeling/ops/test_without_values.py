"""Ops on meta tensors, which have a shape, a dtype and a device but no values: the routes of accelerators on a CPU.

What an op makes has to lie where its inputs do, in the shapes and dtypes that the same call gives on CPU. Looking at a
value raises on a meta tensor, as it would wait on an accelerator.
"""

import pytest
import torch
import torch.nn.functional as F

from recurrent_gemma.modeling import ops
from recurrent_gemma.modeling.ops.causal_conv1d.shifted import causal_conv1d_backward, causal_conv1d_forward
from recurrent_gemma.modeling.ops.local_attention.ring import local_attention_ring_
from recurrent_gemma.modeling.ops.rg_lru.chunked import rg_lru_backward, rg_lru_forward

B, L, R, H, K, W, T = 2, 9, 8, 4, 4, 3, 7
STARTS = torch.tensor([[True] + [False] * (L - 1), [False] * (L - 2) + [True, False]])
VALID = torch.tensor([[True] * L, [True] * (L - 3) + [False] * 3])
CU_SEQLENS = torch.tensor([0, 3, T], dtype=torch.int32)


def draw(*shape):
    return torch.randn(shape)


def marked(length, marked):
    return {"starts": STARTS[:, :length], "valid": VALID[:, :length]} if marked else {}


def rg_lru(length=L, marks=False, **options):
    return ops.rg_lru, (*(draw(B, length, R) for _ in range(3)), draw(R), draw(B, R)), marked(length, marks) | options


def conv(length=L, marks=False):
    return ops.causal_conv1d, (draw(B, length, R), draw(R, K), draw(R), draw(B, K - 1, R)), marked(length, marks)


def attention(length=L, past=W, marks=False, **options):
    tensors = [draw(B, heads, length, R) for heads in (H, 1, 1)] + [draw(B, 1, past, R) for _ in range(2) if past]
    options |= {"past_length": torch.tensor([W, 1])} if marks else {}
    return ops.local_attention, tensors, {"window": W, **marked(length, marks), **options}


def ring(length):
    tensors = [draw(B, heads, length, R) for heads in (H, 2, 2)] + [draw(B, 2, W + 1, R) for _ in range(2)]
    options = {"past_length": torch.tensor([W, 1]), **marked(length, True)}
    return local_attention_ring_, [*tensors, torch.tensor([0, W])], options


CALLS = {
    "rms_norm": (ops.rms_norm, (draw(B, L, R), draw(R)), {"eps": 1e-6}),
    "gated_activation": (ops.gated_activation, (draw(B, R), draw(B, R), F.silu), {}),
    "gated_activation, blocked": (ops.gated_activation, (draw(B, R), draw(B, R), F.silu), {"impl": "blocked"}),
    "linear": (ops.linear, (draw(B, R), draw(5, R), draw(5)), {}),
    "linear, widened": (ops.linear, (draw(B, R), draw(5, R), draw(5)), {"impl": "widened"}),
    "block_diagonal_linear": (ops.block_diagonal_linear, (draw(B, L, R), draw(2, 4, 4), draw(2, 4)), {}),
    "rg_lru": rg_lru(),
    "rg_lru, marks": rg_lru(marks=True),
    "rg_lru, one step": rg_lru(1, marks=True),
    "rg_lru, states": rg_lru(return_states=True),
    "rg_lru_varlen": (ops.rg_lru_varlen, (*(draw(T, R) for _ in range(3)), draw(R), draw(2, R)),
                      {"cu_seqlens": CU_SEQLENS}),
    "causal_conv1d": conv(),
    "causal_conv1d, marks": conv(marks=True),
    "causal_conv1d, one step": conv(1, marks=True),
    "causal_conv1d_varlen": (ops.causal_conv1d_varlen, (draw(T, R), draw(R, K), draw(R), draw(2, K - 1, R)),
                             {"cu_seqlens": CU_SEQLENS}),
    "local_attention": attention(),
    "local_attention, no past": attention(past=0),
    "local_attention, marks": attention(marks=True),
    "local_attention, one token": attention(1, marks=True),
    "local_attention, weights": attention(marks=True, return_weights=True, impl="reference"),
    "local_attention_ring_": ring(L),
    "local_attention_ring_, one token": ring(1),
}  # fmt: skip
# Registered ops tell torch the form of their results without running: what runs on accelerators is called directly.
ROWS = [draw(B, L, R) for _ in range(3)]
CALLS |= {
    "rg_lru_forward": (rg_lru_forward, (*ROWS, draw(R), draw(B, R), STARTS, VALID, torch.float32), {}),
    "rg_lru_backward": (
        rg_lru_backward,
        (draw(B, L, R), draw(B, R), *ROWS, draw(R), draw(B, R), STARTS, VALID, None),
        {},
    ),
    "causal_conv1d_forward": (causal_conv1d_forward, (ROWS[0], draw(R, K), draw(R), None, STARTS), {}),
    "causal_conv1d_backward": (causal_conv1d_backward, (*ROWS[:2], draw(R, K), draw(B, K - 1, R), STARTS), {}),
}
# The ring is written into, and so are the buffers of backends that have their backward by hand.
INFERENCE_ONLY = {name for name in CALLS if name.endswith(("ward", "ring_, one token"))}


def results_on(device, name, gradient):
    op, arguments, options = CALLS[name]
    arguments, options = (
        [t.clone().to(device) if isinstance(t, torch.Tensor) else t for t in values]
        for values in (arguments, options.values())
    )
    leaves = [t for t in arguments if isinstance(t, torch.Tensor) and t.is_floating_point()]
    for leaf in leaves:
        leaf.requires_grad_(gradient)
    results = op(*arguments, **dict(zip(CALLS[name][2], options, strict=True)))
    results = [results] if isinstance(results, torch.Tensor) else list(results)
    if gradient:
        wanted = [t for t in results if t.requires_grad]
        results += torch.autograd.grad(wanted, leaves, [torch.ones_like(t) for t in wanted], allow_unused=True)
    return results


CASES = [(name, gradient) for name in CALLS for gradient in (False, True) if not (gradient and name in INFERENCE_ONLY)]


@pytest.mark.parametrize(("name", "gradient"), CASES)
def test_results_have_the_device_of_the_inputs_and_the_form_of_those_on_cpu(name, gradient):
    found, expected = (results_on(device, name, gradient) for device in ("meta", "cpu"))
    assert len(found) == len(expected)
    for index, (actual, wanted) in enumerate(zip(found, expected, strict=True)):
        assert (actual is None) == (wanted is None), index
        if actual is not None:
            assert actual.is_meta, index
            assert (actual.shape, actual.dtype) == (wanted.shape, wanted.dtype), index
