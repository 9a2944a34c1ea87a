"""Causal attention to a token and the W valid tokens before it, with a rolling window of keys as its state."""

from typing import Any

import torch
from torch import Tensor

from recurrent_gemma.modeling.ops.dispatch import (
    choose_backend,
    expect_floating,
    expect_markers,
    expect_sequence,
    expect_shape,
    holds_on_cpu,
)
from recurrent_gemma.modeling.ops.local_attention.blocked import local_attention_blocked
from recurrent_gemma.modeling.ops.local_attention.flex import local_attention_flex
from recurrent_gemma.modeling.ops.local_attention.reference import local_attention_reference
from recurrent_gemma.modeling.ops.ragged import gather_columns, inverse_order, valid_first


def local_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *,
    window: int,
    past_length: Tensor | None = None,
    starts: Tensor | None = None,
    valid: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    return_weights: bool = False,
    impl: str | None = None,
) -> tuple[Tensor, ...]:
    """Multi-query or grouped local attention over the valid tokens of each row, within their document.

    A query sees itself and the ``window`` valid tokens before it, ``window + 1`` keys. Pads do not exist: they are not
    seen and do not count. Source: ``LocalAttentionBlock`` in ``recurrentgemma/jax/modules.py``.

    Args:
        query: (B, H, L, D), any floating dtype; no empty dimension.
        key: (B, G, L, D), G divides H. RoPE, if any, is already applied, as to the query.
        value: (B, G, L, D).
        past_key: (B, G, P, D), earlier keys in order, the newest last.
        past_value: (B, G, P, D), their values; both or neither.
        window: W >= 1.
        past_length: (B,) int, how many of the past columns, counted from the newest, belong to the document that goes
            on here; all when None.
        starts: (B, L) bool, true at the first token of a document.
        valid: (B, L) bool, false at pads; all valid when None. A start at a pad is ignored.
        scaling: Factor of the scores; D ** -0.5 when None.
        dropout: Probability of dropping an attention weight; 0 with ``impl="flex"``.
        return_weights: Also return the weights; ``impl="reference"`` only, since they are quadratic in length.
        impl: ``"blocked"`` (default), ``"flex"`` or ``"reference"``; forces a backend. A single token is the same work
            for the first two. On CPU ``"flex"`` gives no gradients and takes memory quadratic in length.

    Returns:
        Output (B, H, L, D) in query's dtype, 0 at pads; the new past_key and past_value (B, G, min(W, P + L), D), each
        row's last valid columns, the newest last; and with ``return_weights`` (B, H, L, P + L).

    Raises:
        TypeError: A tensor has the wrong kind of dtype.
        ValueError: Shapes disagree, or an option has a value outside its range.
    """
    backend = choose_backend("local_attention", impl, ("blocked", "flex", "reference"), "blocked")
    length, past = _check(query, key, value, past_key, past_value, window, past_length, starts, valid)
    if return_weights and backend != "reference":
        raise ValueError(f'return_weights: expected impl="reference", which makes the weights, got impl="{backend}".')
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout: expected at least 0 and less than 1, got {dropout}.")
    if dropout and backend == "flex":
        raise ValueError(
            f'dropout: expected 0 with impl="flex", whose kernels drop nothing, got {dropout}; set attention_dropout '
            'to 0, or use impl="blocked" (attn_implementation="sdpa").'
        )
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    if starts is not None and valid is not None:
        starts = starts & valid

    order = None if valid is None else valid_first(valid)
    past_key, new_key = _with_past(past_key, key, order)
    past_value, new_value = _with_past(past_value, value, order)
    count = None if valid is None else valid.sum(dim=1)
    state = (_last_valid(new_key, window, length, count), _last_valid(new_value, window, length, count))
    options: dict[str, Any] = {
        "past": past,
        "window": window,
        "scaling": scaling,
        "past_length": past_length,
    }
    if backend == "reference":
        keys = key if past_key is None else torch.cat((past_key, key), dim=2)
        values = value if past_value is None else torch.cat((past_value, value), dim=2)
        output, weights = local_attention_reference(
            query, keys, values, starts=starts, valid=valid, dropout=dropout, **options
        )
        return (output, *state, weights) if return_weights else (output, *state)
    if order is not None:
        query = gather_columns(query, order, dim=2)
        starts = None if starts is None else starts.gather(1, order)
    # A start at the first token with nothing before it hides nothing.
    documents = None if starts is None or holds_on_cpu(~starts[:, 0 if past else 1 :]) else starts.cumsum(dim=1)
    if past_length is not None and holds_on_cpu(past_length >= past):
        options["past_length"] = None
    if backend == "flex" and length > 1:
        output = local_attention_flex(query, new_key, new_value, documents=documents, **options)
    else:
        # A fused kernel gains nothing for a single query, whose scores are one row.
        output = local_attention_blocked(query, new_key, new_value, documents=documents, dropout=dropout, **options)
    if order is not None and valid is not None:
        output = gather_columns(output, inverse_order(order), dim=2).masked_fill(~valid[:, None, :, None], 0.0)
    return output, *state


def extend_window(past: Tensor | None, new: Tensor, *, window: int, valid: Tensor | None = None) -> Tensor:
    """The past that ``local_attention`` returns for keys or values, without its outputs.

    Args:
        past: (B, G, P, D), earlier columns, the newest last; None: there are none.
        new: (B, G, L, D); L may be 0 where there is a past.
        window: W >= 1.
        valid: (B, L) bool, false at pads; all valid when None.

    Returns:
        (B, G, min(W, P + L), D), each row's last valid columns, the newest last.
    """
    order = None if valid is None else valid_first(valid)
    _, columns = _with_past(past, new, order)
    return _last_valid(columns, window, new.shape[2], None if valid is None else valid.sum(dim=1))


def _with_past(past: Tensor | None, new: Tensor, order: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """The past in new's dtype, and past and new columns in one tensor, valid new columns first."""
    if order is not None:
        new = gather_columns(new, order, dim=2)
    if past is None:
        return None, new
    past = past.to(new.dtype)
    return past, torch.cat((past, new), dim=2)


def _last_valid(columns: Tensor, window: int, length: int, count: Tensor | None) -> Tensor:
    """The last min(W, P + L) columns of (B, G, P + L, D); with pads, of the first P + count of each row."""
    total = columns.shape[2]
    size = min(window, total)
    if count is None:
        # A view would keep all columns alive.
        return columns if size == total else columns[:, :, total - size :].clone()
    index = count[:, None] - length + torch.arange(total - size, total, device=columns.device)
    # A negative index is a place that no token fills yet; its content is never read.
    return gather_columns(columns, index.clamp_min(0), dim=2)


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_key: Tensor | None,
    past_value: Tensor | None,
    window: int,
    past_length: Tensor | None,
    starts: Tensor | None,
    valid: Tensor | None,
) -> tuple[int, int]:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        expect_sequence(name, tensor, "(B, heads, L, D)")
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    if heads % groups:
        raise ValueError(f"key: expected a number of heads that divides query's {heads}, got {groups}.")
    for name, tensor in (("key", key), ("value", value)):
        expect_shape(name, tensor, (batch, groups, length, width), "(B, G, L, D)")
    if (past_key is None) != (past_value is None):
        raise ValueError("past_key, past_value: expected both or neither, got one of them.")
    past = 0
    if past_key is not None and past_value is not None:
        past = past_key.shape[2]
        for name, tensor in (("past_key", past_key), ("past_value", past_value)):
            expect_floating(name, tensor)
            expect_shape(name, tensor, (batch, groups, past, width), "(B, G, P, D)")
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise ValueError(f"window: expected an int of at least 1, got {window!r}.")
    if past_length is not None:
        if past_length.is_floating_point() or past_length.dtype == torch.bool:
            raise TypeError(f"past_length: expected an integer tensor, got {past_length.dtype}.")
        expect_shape("past_length", past_length, (batch,), "(B,)")
    expect_markers("starts", starts, batch, length)
    expect_markers("valid", valid, batch, length)
    return length, past
