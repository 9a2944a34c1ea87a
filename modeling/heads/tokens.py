"""Which columns of a batch are tokens, and which of them is a row's last: what the heads need of the mask."""

from typing import Any

import torch
from torch import Tensor

from recurrent_gemma.modeling.cache import RecurrentGemmaCache
from recurrent_gemma.modeling.compat import one_cache
from recurrent_gemma.modeling.heads.loss import IGNORED
from recurrent_gemma.modeling.inputs import expect_all
from recurrent_gemma.modeling.model import RecurrentGemmaModel


def mask_without_pads(
    attention_mask: Tensor | None, input_ids: Tensor | None, pad_token_id: int | None, cache: RecurrentGemmaCache | None
) -> Tensor | None:
    """``attention_mask``, or one that leaves out the pads that ``input_ids`` (B, L) show; None where all are tokens.

    Args:
        attention_mask: (B, past + L), as the caller gave it.
        input_ids: (B, L).
        pad_token_id: The config's.
        cache: The state, whose columns a mask covers as well.
    """
    if attention_mask is not None or input_ids is None or pad_token_id is None:
        return attention_mask
    mask = (input_ids != pad_token_id).long()
    past = 0 if cache is None else cache.get_seq_length()
    return torch.cat((mask.new_ones(mask.shape[0], past), mask), dim=1)


def read(
    model: RecurrentGemmaModel,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    past_key_values: RecurrentGemmaCache | None,
    cache: RecurrentGemmaCache | None,
    *,
    returns_cache: bool,
    use_cache: bool | None,
    **inputs: Any,
) -> tuple[Any, Tensor | None]:
    """What the backbone gives for a batch, and the mask that says which of its columns are tokens (None: all).

    Args:
        model: The backbone.
        input_ids: (B, L).
        attention_mask: (B, past + L), as the caller gave it.
        past_key_values, cache: The state under either of its names.
        returns_cache: Whether the head's output has a field for one; else none is made.
        use_cache: As the caller gave it.
        **inputs: Of the backbone.
    """
    cache = one_cache(past_key_values, cache)
    if cache is None and not returns_cache:
        use_cache = False
    mask = mask_without_pads(attention_mask, input_ids, model.config.pad_token_id, cache)
    inputs |= {"use_cache": use_cache, "return_dict": True}
    return model(input_ids=input_ids, attention_mask=mask, past_key_values=cache, **inputs), mask


def valid_columns(hidden_states: Tensor, mask: Tensor) -> Tensor:
    """(B, L) bool: which of the L columns of hidden states (B, L, D) are tokens by ``mask`` (B, past + L)."""
    return mask[:, mask.shape[1] - hidden_states.shape[1] :].to(hidden_states.device) != 0


def last_tokens(hidden_states: Tensor, mask: Tensor | None) -> Tensor:
    """(B,) int64: the column of each row's last token.

    Raises:
        ValueError: A row has none (asserted asynchronously on an accelerator).
    """
    batch, length, _ = hidden_states.shape
    columns = torch.arange(length, device=hidden_states.device)
    if mask is None:
        return columns[-1:].expand(batch)
    valid = valid_columns(hidden_states, mask)
    expect_all(
        valid.any(dim=1),
        "attention_mask: expected a token in every row",
        valid.sum(dim=1),
        "leave empty sequences out",
    )
    return (valid * columns).argmax(dim=1)


def rows_and_columns(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> tuple[int, ...] | None:
    """(B, L) of the input; None where there is none, which the model refuses."""
    tokens = inputs_embeds if input_ids is None else input_ids
    return None if tokens is None else tuple(tokens.shape[:2])


def expect_class_labels(name: str, labels: Tensor, shape: tuple[int, ...], num_labels: int) -> None:
    """Raise TypeError or ValueError unless ``labels`` are integers of ``shape``, 0 to num_labels - 1 or -100."""
    if labels.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}: expected integers, one of {num_labels} labels each, got {labels.dtype}.")
    if tuple(labels.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(labels.shape)}.")
    expect_all(
        ((labels >= 0) & (labels < num_labels)) | (labels == IGNORED),
        f"{name}: expected 0 to {num_labels - 1} (num_labels - 1), or {IGNORED}",
        labels,
        "set num_labels in the config",
    )
