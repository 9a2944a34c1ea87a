"""A long text read through the cache: the loss of every token, in memory that does not grow with the text."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from recurrent_gemma.modeling import RecurrentGemmaCache, RecurrentGemmaForCausalLM
from recurrent_gemma.modeling.cache import RecurrentState

Part = Literal["state", "recurrence"]


class Excerpts(NamedTuple):
    """Stretches of one text, each read from a state of nothing.

    Attributes:
        ids: (E, length + 1) int64. Column 0 is only read; every other column is predicted.
        places: (E, length) int64, where in the text each predicted token stands.
    """

    ids: Tensor
    places: Tensor

    @property
    def positions(self) -> Tensor:
        """(E, length) int64, the position that each predicted token has in its stretch, from 1 on."""
        return torch.arange(1, self.ids.shape[1]).expand_as(self.places)


def excerpts(
    text_ids: Sequence[int] | Tensor, *, count: int, length: int | None = None, bos_token_id: int | None = None
) -> Excerpts:
    """``count`` stretches of ``length`` tokens that begin at equal distances in the text, taken as a ring.

    Where they are as long as the text, each holds every token once, at another position each time: what a position
    costs is then not mixed up with what happens to be written there.

    Args:
        text_ids: (N,) ids of the text, without special tokens.
        count: Stretches, 1 to N.
        length: Predicted tokens of a stretch, 1 to N. None: N.
        bos_token_id: What is read first. None: the token that stands before the stretch, as where training cut the
            text into windows.

    Returns:
        The stretches. They overlap where ``count * length`` exceeds N.

    Raises:
        ValueError: A number is out of its range, or the text is not one row of ids.
    """
    text = torch.as_tensor(text_ids, dtype=torch.long)
    if text.ndim != 1 or len(text) < 2:
        raise ValueError(f"text_ids: expected (N,) ids of at least 2 tokens, got shape {tuple(text.shape)}.")
    length = len(text) if length is None else length
    for name, value in (("count", count), ("length", length)):
        if not 1 <= value <= len(text):
            raise ValueError(f"{name}: expected 1 to {len(text)}, the tokens of the text, got {value}; take more text.")
    begins = torch.arange(count) * len(text) // count
    places = (begins[:, None] + torch.arange(length)) % len(text)
    first = text[begins - 1] if bos_token_id is None else torch.full((count,), bos_token_id)
    return Excerpts(torch.cat((first[:, None], text[places]), dim=1), places)


@torch.inference_mode()
def token_losses(
    model: RecurrentGemmaForCausalLM,
    ids: Tensor,
    *,
    reset_every: int | None = None,
    reset: Part = "state",
    reset_token_id: int | None = None,
    chunk_size: int = 512,
    batch_size: int = 1,
) -> Tensor:
    """Negative log-likelihood of every token of ``ids`` but the first of each row, given those before it.

    A row is read in chunks through the cache, which gives what one pass gives, in the memory of one chunk. Its logits
    are the largest part: ``batch_size * chunk_size * vocab_size`` numbers of fp32, three times over.

    Args:
        model: In eval mode. Losses are computed in fp32 from logits in the model's dtype: bfloat16 rounds a logit of 20
            by up to 0.06.
        ids: (B, L + 1) int64, no pads.
        reset_every: Read no more than so many tokens before the past is forgotten. Every token is still predicted: the
            last one that is read before a reset predicts the first one behind it. None: never.
        reset: What is forgotten: the whole ``"state"``, so that rows are read as separate documents, or that of the
            ``"recurrence"`` alone (RG-LRU and convolution), while attention keeps its window.
        reset_token_id: With ``"state"``: what is read in place of the first token after each reset, such as BOS where
            the model was trained on texts that begin with it. None: that token itself.
        chunk_size: Tokens of a row to read at a time.
        batch_size: Rows to read at a time.

    Returns:
        (B, L), fp32, on the CPU.

    Raises:
        TypeError: ``ids`` are not int64.
        ValueError: A wrong shape, a number below 1, an unknown ``reset``, a ``reset_token_id`` that would not be read,
            or a model in training mode.
    """
    _check(model, ids, reset_every, reset, reset_token_id, chunk_size, batch_size)
    inputs, targets = ids[:, :-1].clone(), ids[:, 1:]
    if reset_every is not None and reset_token_id is not None:
        inputs[:, reset_every::reset_every] = reset_token_id
    losses = torch.empty(targets.shape)
    for rows in torch.arange(len(ids)).split(batch_size):
        cache = RecurrentGemmaCache(model.config)
        for columns in chunk_spans(inputs.shape[1], chunk_size, reset_every if reset == "recurrence" else None):
            positions = None
            if reset_every is not None and reset == "state":
                # Position 0 begins a document, which nothing of the past reaches.
                positions = (torch.arange(columns.start, columns.stop) % reset_every)[None].to(model.device)
            elif reset_every is not None and columns.start and columns.start % reset_every == 0:
                _forget_recurrence(cache)
            part = inputs[rows, columns].to(model.device)
            logits = model(input_ids=part, position_ids=positions, past_key_values=cache).logits.flatten(0, 1)
            labels = targets[rows, columns].to(model.device)
            found = F.cross_entropy(logits.float(), labels.flatten(), reduction="none")
            losses[rows, columns] = found.view(labels.shape).cpu()
    return losses


def chunk_spans(length: int, chunk_size: int, border: int | None) -> list[slice]:
    """Slices of at most ``chunk_size`` columns, none of which crosses a multiple of ``border``."""
    begins = set(range(0, length, chunk_size))
    if border is not None:
        begins = {begin for start in range(0, length, border) for begin in range(start, start + border, chunk_size)}
    ordered = [*sorted(begin for begin in begins if begin < length), length]
    return [slice(begin, end) for begin, end in pairwise(ordered)]


def _forget_recurrence(cache: RecurrentGemmaCache) -> None:
    for layer in cache.layers:
        if isinstance(layer.load(), RecurrentState):
            layer.map(torch.zeros_like)


def _check(
    model: RecurrentGemmaForCausalLM,
    ids: Tensor,
    reset_every: int | None,
    reset: str,
    reset_token_id: int | None,
    chunk_size: int,
    batch_size: int,
) -> None:
    if model.training:
        raise ValueError("model: expected one in eval mode, got one in training mode; call model.eval().")
    if ids.dtype != torch.int64:
        raise TypeError(f"ids: expected an int64 tensor, got {ids.dtype}.")
    if ids.ndim != 2 or len(ids) < 1 or ids.shape[1] < 2:
        raise ValueError(f"ids: expected (B, L + 1) with L of at least 1, got shape {tuple(ids.shape)}.")
    for name, value in (("reset_every", reset_every), ("chunk_size", chunk_size), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}.")
    if reset not in get_args(Part):
        raise ValueError(f"reset: expected one of {list(get_args(Part))}, got {reset!r}.")
    if reset_token_id is not None and (reset_every is None or reset != "state"):
        raise ValueError(
            f"reset_token_id: expected None where the whole state is never reset, got {reset_token_id}; give "
            'reset_every, with reset="state".'
        )
