"""Cross entropy of the soft-capped output of a linear layer, as one op."""

import torch
from torch import Tensor

from recurrent_gemma.modeling.ops.cross_entropy.chunked import (
    gradient_dtype,
    linear_cross_entropy_forward,
    scaled,
)
from recurrent_gemma.modeling.ops.cross_entropy.reference import linear_cross_entropy_reference
from recurrent_gemma.modeling.ops.dispatch import (
    choose_backend,
    expect_floating,
    expect_sequence,
    expect_shape,
    needs_registered_op,
    refuse_forward_mode,
)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    soft_cap: float | None = None,
    ignore_index: int = -100,
    impl: str | None = None,
) -> Tensor:
    """Sum over tokens of the cross entropy of ``soft_cap * tanh(hidden @ weight.T / soft_cap)`` against ``labels``.

    Never holds the logits of all tokens, which at 4,096 tokens and 256,000 words are 4 GB in fp32. The products are in
    hidden's dtype (under autocast: autocast's), all else in fp32 (fp64 for fp64 inputs).

    Args:
        hidden: (N, D), any floating dtype; N, D >= 1.
        weight: (V, D), same dtype.
        labels: (N,) int64, 0 to V - 1, or ``ignore_index``.
        soft_cap: Of the logits, above 0; None: no cap.
        ignore_index: The label of tokens without loss.
        impl: ``"chunked"`` (default) or ``"reference"``; forces a backend.

    Returns:
        The sum, (), fp32 (fp64 for fp64 inputs); 0 if every label is ``ignore_index``.

    Raises:
        TypeError: A tensor has the wrong kind of dtype.
        ValueError: A shape or dtype disagrees with hidden's, soft_cap is not above 0, or ``impl`` does not exist.
        NotImplementedError: Forward-mode or second derivatives are asked for.
    """
    backend = choose_backend("linear_cross_entropy", impl, ("chunked", "reference"), "chunked")
    expect_sequence("hidden", hidden, "(N, D)")
    expect_floating("weight", weight)
    expect_shape("weight", weight, (weight.shape[0], hidden.shape[1]), "(V, D)")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels: expected an int64 tensor, got {labels.dtype}.")
    expect_shape("labels", labels, hidden.shape[:1], "(N,)")
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"soft_cap: expected a number above 0, or None for no cap, got {soft_cap}.")
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        hidden, weight = (t.to(torch.get_autocast_dtype(device)) for t in (hidden, weight))
    if hidden.dtype != weight.dtype:
        raise ValueError(f"weight: expected hidden's dtype, {hidden.dtype}, got {weight.dtype}; cast one of them.")
    if backend == "reference":
        return linear_cross_entropy_reference(hidden, weight, labels, soft_cap, ignore_index)
    refuse_forward_mode("linear_cross_entropy", hidden, weight)
    wants = (t.requires_grad and torch.is_grad_enabled() for t in (hidden, weight))
    run = _linear_cross_entropy if needs_registered_op(hidden, weight) else linear_cross_entropy_forward
    return run(hidden, weight, labels, soft_cap, ignore_index, *wants)[0]


@torch.library.custom_op("recurrent_gemma::linear_cross_entropy", mutates_args=())
def _linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    soft_cap: float | None,
    ignore_index: int,
    wants_hidden: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return linear_cross_entropy_forward(hidden, weight, labels, soft_cap, ignore_index, wants_hidden, wants_weight)


@_linear_cross_entropy.register_fake
def _(hidden, weight, labels, soft_cap, ignore_index, wants_hidden, wants_weight):
    loss = hidden.new_empty((), dtype=torch.promote_types(hidden.dtype, torch.float32))
    gradients = (
        t.new_empty(t.shape if wanted else (0,), dtype=gradient_dtype(t.dtype))
        for t, wanted in ((hidden, wants_hidden), (weight, wants_weight))
    )
    return loss, *gradients


# An op of its own, without a derivative, so that second derivatives raise.
@torch.library.custom_op("recurrent_gemma::linear_cross_entropy_backward", mutates_args=())
def _linear_cross_entropy_backward(grad_loss: Tensor, gradient: Tensor, dtype: torch.dtype) -> Tensor:
    return scaled(gradient, grad_loss, dtype)


@_linear_cross_entropy_backward.register_fake
def _(grad_loss, gradient, dtype):
    return torch.empty_like(gradient, dtype=dtype)


def _setup_context(ctx, inputs, output):
    hidden, _, _, _, _, *ctx.wants = inputs
    _, *gradients = output
    ctx.dtype = hidden.dtype
    ctx.save_for_backward(*gradients)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_loss, *_):
    if grad_loss is None:
        return (None,) * 7
    gradients = (
        _linear_cross_entropy_backward(grad_loss, gradient, ctx.dtype) if wanted else None
        for gradient, wanted in zip(ctx.saved_tensors, ctx.wants, strict=True)
    )
    return *gradients, *(None,) * 5


_linear_cross_entropy.register_autograd(_backward, setup_context=_setup_context)
