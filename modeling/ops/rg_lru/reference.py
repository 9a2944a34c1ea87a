"""RG-LRU as its equations, one step after the other. Differentiable by autograd; slow by design.

Source: arXiv 2402.19427, section 2.4, and ``RGLRU.__call__`` in ``recurrentgemma/jax/layers.py``.
"""

from typing import Any

import torch
from torch import Tensor

from recurrent_gemma.modeling.ops.rg_lru.gates import MAX_SQRT_GRADIENT, decay_rate


class _SqrtBoundedDerivative(torch.autograd.Function):
    """sqrt whose derivative is clipped at 1000 (``sqrt_bound_derivative`` in ``recurrentgemma/jax/layers.py``)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sqrt()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * 0.5 / x.clamp_min(1 / (4 * MAX_SQRT_GRADIENT**2)).sqrt()


def rg_lru_reference(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    a_param: Tensor,
    h0: Tensor | None,
    starts: Tensor | None,
    valid: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """All states h (B, L, R) and the last one (B, R), in fp32 (fp64 where x is fp64)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, input_gate, recurrence_gate = x.to(dtype), input_gate.to(dtype), recurrence_gate.to(dtype)
    log_a = decay_rate(a_param.to(dtype)) * torch.sigmoid(recurrence_gate)
    a = torch.exp(log_a)
    multiplier = _SqrtBoundedDerivative.apply(-torch.expm1(2 * log_a))
    if starts is not None:
        a = a.masked_fill(starts[..., None], 0.0)
        multiplier = multiplier.masked_fill(starts[..., None], 1.0)
    h = x.new_zeros(x.shape[0], x.shape[2]) if h0 is None else h0.to(dtype)
    states = []
    for t in range(x.shape[1]):
        candidate = multiplier[:, t] * torch.sigmoid(input_gate[:, t]) * x[:, t]
        if starts is None:
            candidate = a[:, t] * h + candidate
        else:
            candidate = torch.where(starts[:, t, None], 0.0, a[:, t] * h) + candidate
        h = candidate if valid is None else torch.where(valid[:, t, None], candidate, h)
        states.append(h)
    return torch.stack(states, dim=1), h
