"""Root mean square norm over the last dimension, its weight counted from 1."""

import torch
from torch import Tensor

from recurrent_gemma.modeling.ops.dispatch import (
    choose_backend,
    expect_floating,
    expect_shape,
    is_traced,
    refuse_forward_mode,
)
from recurrent_gemma.modeling.ops.rms_norm.fused import RMSNormFunction, rms_norm_forward
from recurrent_gemma.modeling.ops.rms_norm.reference import rms_norm_reference


def rms_norm(x: Tensor, weight: Tensor, *, eps: float, impl: str | None = None) -> Tensor:
    """``x / sqrt(mean(x^2) + eps) * (1 + weight)``, in fp32 (fp64 for fp64 inputs) whatever the dtype.

    Source: ``RMSNorm`` in ``recurrentgemma/jax/layers.py``.

    Args:
        x: (..., D), any floating dtype.
        weight: (D,).
        eps: Added to the mean square.
        impl: ``"fused"`` (default in eager mode) or ``"reference"`` (default for compilers, which fuse it themselves,
            and under functorch's transforms); forces a backend.

    Returns:
        (..., D) in x's dtype.

    Raises:
        TypeError: A tensor has the wrong kind of dtype.
        ValueError: ``weight`` has another width than x, or ``impl`` does not exist.
        NotImplementedError: ``"fused"`` is asked for forward-mode derivatives.
    """
    expect_floating("x", x)
    expect_shape("weight", weight, x.shape[-1:], "(D,)")
    backend = choose_backend("rms_norm", impl, ("fused", "reference"), "reference" if is_traced() else "fused")
    if backend == "reference":
        return rms_norm_reference(x, weight, eps)
    refuse_forward_mode("rms_norm", x, weight)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return RMSNormFunction.apply(x, weight, eps)
    return rms_norm_forward(x, weight, eps)[0]
