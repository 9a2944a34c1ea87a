"""Cross entropy of a soft-capped linear output in chunks of tokens, in plain torch for any device.

The logits of a chunk give its loss and, while they are there, its gradients: three matrix products in all, as many as
with the logits of all tokens, and none is made twice.
"""

import torch
from torch import Tensor

# Logits of a chunk: on CPU they should stay near the last-level cache, on an accelerator the products should fill it.
# Fewer tokens than the least would read the weights more often than their products are worth.
_CPU_ELEMENTS = 1 << 21
_ACCELERATOR_ELEMENTS = 1 << 27
_LEAST_TOKENS = 128
# More would overflow float16 in the sums of a chunk's gradient.
MOST_TOKENS = 1024

# Words at a time whose gradients in half precision are added up in fp32.
_WORDS = 1 << 14


def linear_cross_entropy_forward(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    soft_cap: float | None,
    ignore_index: int,
    wants_hidden: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum of the cross entropies, and its gradients with respect to hidden and weight.

    Args:
        hidden: (N, D).
        weight: (V, D), same dtype.
        labels: (N,) int64.
        soft_cap: Of the logits; None: no cap.
        ignore_index: The label of tokens without loss.
        wants_hidden, wants_weight: Whether each gradient is wanted.

    Returns:
        The sum in the compute dtype, and the gradients (N, D) and (V, D) in ``gradient_dtype``; empty where not wanted.
    """
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    loss = torch.zeros((), dtype=dtype, device=hidden.device)
    kept_dtype = gradient_dtype(hidden.dtype)
    grad_hidden = hidden.new_zeros(hidden.shape if wants_hidden else 0, dtype=kept_dtype)
    grad_weight = weight.new_zeros(weight.shape if wants_weight else 0, dtype=dtype)
    # Looking at the labels costs an accelerator more than the tokens that have none.
    counted = (labels != ignore_index).nonzero().squeeze(1) if labels.device.type == "cpu" else None
    size = _chunk_tokens(hidden.device, weight.shape[0])
    with torch.autocast(hidden.device.type, enabled=False):  # the caller has cast what autocast wants cast
        for begin in range(0, labels.shape[0] if counted is None else counted.shape[0], size):
            chunk = slice(begin, begin + size)
            where = chunk if counted is None else counted[chunk]
            rows = hidden[where]
            part, grad_logits = _chunk(
                (rows @ weight.T).to(dtype), labels[where], soft_cap, ignore_index, wants_hidden or wants_weight
            )
            loss += part
            if grad_logits is None:
                continue
            grad_logits = grad_logits.to(hidden.dtype)
            if wants_hidden:
                grad_hidden[where] = (grad_logits @ weight).to(kept_dtype)
            if wants_weight:
                _add_product_(grad_weight, grad_logits.T, rows)
    return loss, grad_hidden, grad_weight.to(kept_dtype)


def gradient_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that gradients of a sum over all tokens are kept in: float16 could not hold them."""
    return torch.float32 if dtype == torch.float16 else dtype


def scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """``gradient`` (N, D) times ``factor`` () in ``dtype``; the factor is not rounded, which would scale all alike."""
    result = torch.empty_like(gradient, dtype=dtype)
    for part, out in zip(gradient.split(_WORDS), result.split(_WORDS), strict=True):
        out.copy_(part.to(factor.dtype) * factor)
    return result


def _chunk(
    logits: Tensor, labels: Tensor, soft_cap: float | None, ignore_index: int, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Loss (), and its gradient with respect to the logits (N, V), in which they are overwritten."""
    ratio = None
    if soft_cap is not None:
        ratio = logits.div_(soft_cap).tanh_()
        logits = ratio * soft_cap
    ignored = labels[:, None] == ignore_index
    target = labels[:, None].masked_fill(ignored, 0)
    picked, highest = logits.gather(1, target), logits.amax(dim=1, keepdim=True)
    probabilities = logits.sub_(highest).exp_()
    total = probabilities.sum(dim=1, keepdim=True)
    loss = (total.log() + highest - picked).masked_fill_(ignored, 0.0).sum()
    if not gradient:
        return loss, None
    grad = probabilities.div_(total).scatter_add_(1, target, picked.new_full((1, 1), -1.0).expand_as(target))
    if ratio is not None:
        grad.addcmul_(grad, ratio.square_(), value=-1.0)  # d (c tanh(z / c)) / dz = 1 - tanh(z / c)^2
    return loss, grad.masked_fill_(ignored, 0.0)


def _add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total (V, D) += left (V, N) @ right (N, D), added up in total's dtype."""
    if total.dtype == right.dtype:
        total.addmm_(left, right)
        return
    for part, words in zip(total.split(_WORDS), left.split(_WORDS), strict=True):
        part.add_(words @ right)


def _chunk_tokens(device: torch.device, words: int) -> int:
    elements = _CPU_ELEMENTS if device.type == "cpu" else _ACCELERATOR_ELEMENTS
    return min(MOST_TOKENS, max(_LEAST_TOKENS, elements // words))
