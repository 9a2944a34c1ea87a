"""``activation(gate) * x``, which keeps nothing but its inputs for the backward on CPU."""

from collections.abc import Callable

import torch
from torch import Tensor

from recurrent_gemma.modeling.ops.dispatch import (
    choose_backend,
    expect_floating,
    expect_shape,
    is_traced,
    refuse_forward_mode,
)
from recurrent_gemma.modeling.ops.gated_activation.blocked import GatedActivationFunction
from recurrent_gemma.modeling.ops.gated_activation.reference import gated_activation_reference


def gated_activation(
    gate: Tensor, x: Tensor, activation: Callable[[Tensor], Tensor], *, impl: str | None = None
) -> Tensor:
    """``activation(gate) * x``. Source: ``MLPBlock`` and ``RecurrentBlock`` in ``recurrentgemma/jax/modules.py``.

    Args:
        gate: (..., F), any floating dtype.
        x: (..., F).
        activation: Of each element by itself, without state or parameters.
        impl: ``"blocked"`` (default for gradients on CPU) or ``"reference"`` (default elsewhere); forces a backend.

    Returns:
        (..., F) in the inputs' dtype.

    Raises:
        TypeError: A tensor has the wrong kind of dtype.
        ValueError: The shapes differ, or ``impl`` does not exist.
        NotImplementedError: ``"blocked"`` is asked for forward-mode derivatives.
    """
    expect_floating("gate", gate)
    expect_floating("x", x)
    expect_shape("x", x, gate.shape, "that of gate")
    needs_gradient = torch.is_grad_enabled() and (gate.requires_grad or x.requires_grad)
    blocked = needs_gradient and gate.is_cpu and not is_traced()
    default = "blocked" if blocked else "reference"
    if choose_backend("gated_activation", impl, ("blocked", "reference"), default) == "reference":
        return gated_activation_reference(gate, x, activation)
    refuse_forward_mode("gated_activation", gate, x)
    return GatedActivationFunction.apply(gate, x, activation)
