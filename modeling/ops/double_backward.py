"""Second derivatives for backends whose backward is written by hand: those of the op's equation."""

from collections.abc import Callable

import torch
from torch import Tensor


def gradients_of_equation(
    equation: Callable[..., Tensor], inputs: tuple[Tensor, ...], grad: Tensor
) -> list[Tensor | None]:
    """The gradient of ``equation(*inputs)`` for each input, None where none is required, differentiable again."""
    # Views, so that each argument has a gradient of its own, should two of them be one tensor.
    views = [t.view_as(t) for t in inputs]
    required = [t for t in views if t.requires_grad]
    found = iter(torch.autograd.grad(equation(*views), required, grad, create_graph=True))
    return [next(found) if t.requires_grad else None for t in views]
