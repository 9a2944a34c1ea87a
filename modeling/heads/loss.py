"""The language model's loss: which label belongs to which token, and the mean over the tokens that have one."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Label of tokens without loss, as in torch and Transformers.
IGNORED = -100


def next_token_labels(
    labels: Tensor,
    *,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    seq_idx: Tensor | None = None,
) -> Tensor:
    """(B, L) labels of the token after each column, -100 where there is none in the same document.

    A document's first token is predicted by nothing, so its label is not used, whether a pad or another document's
    last token stands before it.

    Args:
        labels: (B, L), the label of each column's own token.
        attention_mask, position_ids, cu_seq_lens_q, seq_idx: As the model got them.
    """
    length = labels.shape[1]
    first = torch.zeros_like(labels, dtype=torch.bool)
    if position_ids is not None:
        first = first | (position_ids.to(labels.device) == 0)
    if cu_seq_lens_q is not None:
        columns = torch.arange(length, device=labels.device)
        first = first | torch.isin(columns, cu_seq_lens_q.to(labels.device))
    if seq_idx is not None:
        seq_idx = seq_idx.to(labels.device)
        first = first | F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0), value=True)
    if attention_mask is not None:
        valid = attention_mask[:, attention_mask.shape[1] - length :].to(labels.device) != 0
        # The first valid token of this call. Pads before it see none of its document.
        first = (first | (valid.cumsum(dim=1) == 1)) & valid
    return F.pad(labels.masked_fill(first, IGNORED), (0, 1), value=IGNORED)[:, 1:]


def mean_over(total: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """``total`` (), a sum over labels, over ``num_items_in_batch`` or over how many labels count; 0 if none does."""
    count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    if not isinstance(count, Tensor):
        return total / max(1, count)
    return total / count.to(total.device).clamp(min=1)
