"""Which columns of a batch are tokens, and which of them is a row's last: what the heads need of the mask."""

import torch
from torch import Tensor

from recurrent_gemma.modeling.cache import RecurrentGemmaCache


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


def valid_columns(hidden_states: Tensor, mask: Tensor) -> Tensor:
    """(B, L) bool: which of the L columns of hidden states (B, L, D) are tokens by ``mask`` (B, past + L)."""
    return mask[:, mask.shape[1] - hidden_states.shape[1] :].to(hidden_states.device) != 0


def last_tokens(hidden_states: Tensor, mask: Tensor | None) -> Tensor:
    """(B,) int64: the column of each row's last token.

    Raises:
        ValueError: A row has none (looked at on CPU only).
    """
    batch, length, _ = hidden_states.shape
    columns = torch.arange(length, device=hidden_states.device)
    if mask is None:
        return columns[-1:].expand(batch)
    valid = valid_columns(hidden_states, mask)
    if valid.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(valid.any(dim=1).all()):
        row = int((~valid.any(dim=1)).nonzero()[0])
        raise ValueError(
            f"attention_mask: expected a token in every row, got pads alone in row {row}; leave empty sequences out."
        )
    return (valid * columns).argmax(dim=1)
