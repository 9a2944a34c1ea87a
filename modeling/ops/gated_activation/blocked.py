"""The product with a backward that computes the activation again, in blocks that stay in cache.

The activation's value is as large as its inputs: to keep it costs more on CPU, where fresh memory is slow, than to
compute it twice.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from recurrent_gemma.modeling.ops.double_backward import gradients_of_equation
from recurrent_gemma.modeling.ops.gated_activation.reference import gated_activation_reference

# Elements of a block.
_BLOCK_ELEMENTS = 1 << 18


class GatedActivationFunction(torch.autograd.Function):
    """``activation(gate) * x`` with its derivative; where that is to be differentiated again, the equation's."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(gate, x)
        ctx.activation = activation
        return gated_activation_reference(gate, x, activation)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        gate, x = ctx.saved_tensors
        if torch.is_grad_enabled():
            grad_gate, grad_x = gradients_of_equation(
                lambda gate, x: gated_activation_reference(gate, x, ctx.activation), (gate, x), grad
            )
            return grad_gate, grad_x, None
        grad_gate, grad_x = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (gate, x))
        blocks = (t.reshape(-1).split(_BLOCK_ELEMENTS) for t in (grad, gate, x, grad_gate, grad_x))
        for grad_block, gate_block, x_block, out_gate, out_x in zip(*blocks, strict=True):
            with torch.enable_grad():
                leaf = gate_block.detach().requires_grad_()
                active = ctx.activation(leaf)
            (gradient,) = torch.autograd.grad(active, leaf, grad_block * x_block)
            out_gate.copy_(gradient)
            torch.mul(grad_block, active.detach(), out=out_x)
        return grad_gate, grad_x, None
