"""The model against itself by another route: split, packed and padded rows equal solo rows. As ``checks.py`` in form.

DeepMind's code has neither pads nor a cache that is extended by several tokens, so here the judge is the solo run,
which ``checks.py`` compares with DeepMind's.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.parity import ours
from tests.parity.cases import Case
from tests.tolerances import (
    ROWS_EQUAL_SOLO_GRADIENTS,
    ROWS_EQUAL_SOLO_LOGITS,
    SPLIT_EQUALS_WHOLE_LOGITS,
    assert_close,
    assert_close_by_max,
    logits_tolerance,
)

# Pads at the columns of each row: on the left and in the middle; in the middle and on the right.
_PADS = ((0, 1, 2, 9, 10, 20), (4, 21, 22, 35, -2, -1))


def check_split(case: Case) -> None:
    """Any split of a row into calls that share a cache gives what one call gives."""
    model, tokens = ours.build(case), ours.tokens_of(case)
    whole = ours.run(model, tokens)
    window, length = case.config.attention_window_size, case.length
    for pieces in ([1, 2, 3], [window - 1, 1, window], [window + 1, window + 2]):
        actual = ours.run_in_pieces(model, tokens, [*pieces, length - sum(pieces)])
        assert_close(actual, whole, SPLIT_EQUALS_WHOLE_LOGITS, f"{case} in pieces of {pieces} and the rest")


def check_split_packed(case: Case) -> None:
    """The same for rows of several documents, which end and start anywhere in a call."""
    model, tokens, positions = ours.build(case), ours.tokens_of(case), torch.from_numpy(case.packed_positions())
    whole = ours.run(model, tokens, position_ids=positions)
    bar = logits_tolerance(SPLIT_EQUALS_WHOLE_LOGITS, whole)
    for size in (1, 3, 16):
        pieces = [size] * (case.length // size) + [case.length % size] * (case.length % size > 0)
        actual = ours.run_in_pieces(model, tokens, pieces, positions)
        assert_close(actual, whole, bar, f"{case} packed in pieces of {size}")


def check_packed_equals_solo(case: Case) -> None:
    """Documents packed into rows give the logits and gradients of each document in a row of its own."""
    model, tokens, positions = ours.build(case), ours.tokens_of(case), torch.from_numpy(case.packed_positions())
    documents = [t for row, lengths in zip(tokens, case.documents, strict=True) for t in row.split(lengths)]
    packed, packed_gradients = _weighted_sum(model, lambda: [model(input_ids=tokens, position_ids=positions).logits])
    solo, solo_gradients = _weighted_sum(model, lambda: [model(input_ids=t[None]).logits for t in documents])
    assert_close(packed, solo, ROWS_EQUAL_SOLO_LOGITS, f"{case} packed against solo")
    for name, gradient in packed_gradients.items():
        expected = solo_gradients[name]
        assert_close_by_max(gradient, expected, ROWS_EQUAL_SOLO_GRADIENTS, f"{case} packed: gradient of {name}")


def check_padded_equals_solo(case: Case) -> None:
    """Rows with pads give the logits and gradients of the rows without them, and go on from the same state."""
    model, tokens = ours.build(case), ours.tokens_of(case)
    prompt, rest = tokens[:, :-6], tokens[:, -6:]
    columns = prompt.shape[1] + len(_PADS[0])
    mask = torch.ones(len(tokens), columns, dtype=torch.long)
    for row, pads in enumerate(_PADS):
        mask[row, list(pads)] = 0
    # Pads hold a real token, so that one that is looked at shows.
    padded = torch.full((len(tokens), columns), 5).masked_scatter(mask.bool(), prompt)
    actual, gradients = _weighted_sum(
        model, lambda: [model(input_ids=padded, attention_mask=mask).logits[mask.bool()].view(*prompt.shape, -1)]
    )
    expected, solo_gradients = _weighted_sum(model, lambda: [model(input_ids=prompt).logits])
    assert_close(actual, expected, ROWS_EQUAL_SOLO_LOGITS, f"{case} padded")
    for name, gradient in gradients.items():
        assert_close_by_max(gradient, solo_gradients[name], ROWS_EQUAL_SOLO_GRADIENTS, f"{case} padded: {name}")

    whole = ours.run(model, tokens)[:, -6:]
    with torch.no_grad():
        cache = model(input_ids=padded, attention_mask=mask, use_cache=True).past_key_values
        mask = torch.cat((mask, torch.ones_like(rest)), dim=1)
        continued = model(input_ids=rest, attention_mask=mask, past_key_values=cache).logits
    assert_close(continued, whole, ROWS_EQUAL_SOLO_LOGITS, f"{case} continued after pads")


def _weighted_sum(model: torch.nn.Module, run: Callable[[], list[Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits (tokens, V) of ``run``, and the gradients of a fixed weighted sum of them."""
    model.zero_grad()
    logits = torch.cat([part.flatten(0, 1) for part in run()])
    weights = torch.arange(logits.numel()).cos().view_as(logits)
    (logits * weights).sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters()}
