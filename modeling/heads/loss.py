"""The language model's loss: which label belongs to which token, and the mean over the tokens that have one."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Label of tokens without loss, as in torch and Transformers.
IGNORED = -100


def next_token_labels(labels: Tensor, starts: Tensor | None, valid: Tensor | None) -> Tensor:
    """(B, L) labels of the token after each column, -100 where there is none in the same document.

    A document's first token is predicted by nothing, so its label is not used, whether a pad or another document's
    last token stands before it. A pad has no label; before the row's first token of this call it predicts nothing, and
    after it, what the token before it predicts.

    Args:
        labels: (B, L), the label of each column's own token.
        starts, valid: (B, L), as the layers get them (``modeling/inputs.py``).
    """
    if starts is not None:
        labels = labels.masked_fill(starts.to(labels.device), IGNORED)
    if valid is not None:
        valid = valid.to(labels.device)
        first = valid & (valid.cumsum(dim=1) == 1)
        labels = labels.masked_fill(first | ~valid, IGNORED)
    return F.pad(labels, (0, 1), value=IGNORED)[:, 1:]


def mean_cross_entropy(logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """Mean (), fp32, over labels (N,) of the cross entropy of logits (N, C); see ``mean_over``."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    total = F.cross_entropy(logits.to(dtype), labels.long(), ignore_index=IGNORED, reduction="sum")
    return mean_over(total, labels, num_items_in_batch)


def mean_over(total: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
    """``total`` (), a sum over labels, over ``num_items_in_batch`` or over how many labels count; 0 if none does."""
    count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
    if not isinstance(count, Tensor):
        return total / max(1, count)
    return total / count.to(total.device).clamp(min=1)
