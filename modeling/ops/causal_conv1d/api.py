"""Causal depthwise convolution over time that knows documents, pads and a history."""

import torch
from torch import Tensor

from recurrent_gemma.modeling.ops.causal_conv1d.op import expect_taps, run_causal_conv1d
from recurrent_gemma.modeling.ops.causal_conv1d.reference import causal_conv1d_reference
from recurrent_gemma.modeling.ops.dispatch import (
    choose_kernel_backend,
    expect_floating,
    expect_markers,
    expect_sequence,
    expect_shape,
    holds_on_cpu,
    refuse_forward_mode,
)
from recurrent_gemma.modeling.ops.ragged import gather_columns, inverse_order, valid_first


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    history: Tensor | None = None,
    *,
    starts: Tensor | None = None,
    valid: Tensor | None = None,
    impl: str | None = None,
) -> tuple[Tensor, Tensor]:
    """``y_t = bias + sum_k weight[:, k] x_{t - (K - 1) + k}``, each channel by itself, over the valid tokens of a row.

    A token sees no input from before its document's start, and pads do not exist: they neither enter the window nor
    shift it. Accumulated in fp32 (fp64 for fp64 inputs). Source: ``Conv1D`` in ``recurrentgemma/jax/layers.py``.

    Args:
        x: (B, L, R), any floating dtype; B, L, R >= 1.
        weight: (R, K), K >= 1; ``weight[:, -1]`` multiplies the current token.
        bias: (R,).
        history: (B, K - 1, R), the last valid inputs before x, the newest last; zeros when None.
        starts: (B, L) bool, true at the first token of a document.
        valid: (B, L) bool, false at pads; all valid when None. A start at a pad is ignored.
        impl: ``"triton"`` (default on CUDA devices, where Triton is installed), ``"shifted"`` (default elsewhere, and
            for fp64) or ``"reference"``; forces a backend.

    Returns:
        y (B, L, R) in x's dtype, 0 at pads, and the new history (B, K - 1, R) in x's dtype: the last valid inputs,
        zeros where they belong to an earlier document than the last token's.

    Raises:
        TypeError: A tensor has the wrong kind of dtype.
        ValueError: A shape disagrees with x's, a dimension is empty, or ``impl`` does not exist or cannot run here.
        NotImplementedError: Forward-mode or second derivatives are asked for.
    """
    expect_sequence("x", x)
    backend = choose_kernel_backend("causal_conv1d", impl, x, "shifted")
    batch, length, width = x.shape
    taps = expect_taps(weight, bias, width)
    if history is not None:
        expect_floating("history", history)
        expect_shape("history", history, (batch, taps - 1, width), "(B, K - 1, R)")
    expect_markers("starts", starts, batch, length)
    expect_markers("valid", valid, batch, length)
    if starts is not None and valid is not None:
        starts = starts & valid

    if backend == "reference":
        y, history = causal_conv1d_reference(x, weight, bias, history, starts, valid)
        return y.to(x.dtype), history
    refuse_forward_mode("causal_conv1d", x, weight, bias, history)
    if starts is not None and history is None and holds_on_cpu(~starts[:, 1:]):
        starts = None  # nothing stands before the first token
    if valid is None:
        tokens, order = x, None
    else:
        order = valid_first(valid)
        tokens = gather_columns(x, order)
        starts = None if starts is None else starts.gather(1, order)
    if history is not None:
        history = history.to(x.dtype)
    y = run_causal_conv1d(backend, tokens, weight, bias, history, starts)
    if valid is not None and order is not None:
        y = gather_columns(y, inverse_order(order)).masked_fill(~valid[..., None], 0.0)
    if history is None:
        history = x.new_zeros(batch, taps - 1, width)
    return y, _last_inputs(history, tokens, starts, valid)


def conv_history(x: Tensor, history: Tensor, *, starts: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
    """The history that ``causal_conv1d`` returns, without its outputs.

    Args:
        x: (B, L, R) inputs; L may be 0.
        history: (B, K - 1, R), the last valid inputs before x, in x's dtype.
        starts: (B, L) bool, as there.
        valid: (B, L) bool, as there.

    Returns:
        (B, K - 1, R).
    """
    if starts is not None and valid is not None:
        starts = starts & valid
    if valid is not None:
        order = valid_first(valid)
        x = gather_columns(x, order)
        starts = None if starts is None else starts.gather(1, order)
    return _last_inputs(history, x, starts, valid)


def _last_inputs(history: Tensor, tokens: Tensor, starts: Tensor | None, valid: Tensor | None) -> Tensor:
    """The last K - 1 inputs of (B, K - 1, R) and then (B, L, R), zeroed before the last document's start.

    Args:
        valid: (B, L) bool, of which only the number in each row counts: valid tokens come first.
    """
    batch, kept, _ = history.shape
    length = tokens.shape[1]
    if valid is None:
        history = torch.cat((history[:, length:], tokens[:, max(0, length - kept) :]), dim=1)
        if starts is None:
            return history
        begin = torch.full((batch, 1), length, device=tokens.device)
    else:
        begin = valid.sum(dim=1, keepdim=True)
        columns = begin + torch.arange(kept, device=tokens.device)
        history = gather_columns(torch.cat((history, tokens), dim=1), columns)
    if starts is None:
        return history
    # Indices of tokens; those of the history before them are negative.
    column = begin + torch.arange(-kept, 0, device=tokens.device)
    positions = torch.arange(length, device=tokens.device).expand_as(starts)
    last_start = positions.masked_fill(~starts, -kept).amax(dim=1, keepdim=True)
    return history.masked_fill((column < last_start)[..., None], 0.0)
