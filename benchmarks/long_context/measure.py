"""The measurements: losses of the same tokens by the model whole and with parts taken away, and passkeys."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.long_context.texts import Subject
from recurrent_gemma.evaluation.long_context import (
    BlockBootstrap,
    Excerpts,
    attention_off,
    excerpts,
    log_spaced_bins,
    passkey,
    token_losses,
    with_window,
)
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM

WHOLE = "whole"
# Tokens of a block of the bootstrap.
BLOCK = 512
# Of both kinds of reading: short excerpts make up for the few tokens that long ones have at low positions.
SHORT_WINDOWS = 8
# Resets lie this many windows apart in the variant that shows what the state keeps for longer.
FAR_RESET = 8
# Fewer documents than this cannot be resampled.
LEAST_DOCUMENTS = 10
# With fewer blocks than this on one side of a comparison, some resample would have none of them.
LEAST_BLOCKS = 20

Read = Callable[[RecurrentGemmaForCausalLM, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to read the text.

    Attributes:
        title: What is taken away; ``{window}``, ``{keys}`` and ``{far}`` stand for numbers of the model.
        short: The same in as few words as a column has room for.
        reset_windows: Windows between two resets, if any.
    """

    title: str
    short: str
    reset_windows: int | None = None


VARIANTS = {
    WHOLE: Variant("whole", "whole"),
    "reset": Variant("state reset every {window} tokens", "reset, {window}", 1),
    "far-reset": Variant("state reset every {far} tokens", "reset, {far}", FAR_RESET),
    "recurrence-reset": Variant(
        "recurrence reset every {window} tokens, attention's window kept", "recurrence reset, {window}", 1
    ),
    "attention-off": Variant("attention off", "attention off"),
    "narrow": Variant("{window} keys instead of {keys}", "{window} keys"),
}


def title(variant: str, window: int, *, short: bool = False) -> str:
    """What the variant is, for a model of this window."""
    text = VARIANTS[variant].short if short else VARIANTS[variant].title
    return text.format(window=window, keys=window + 1, far=f"{FAR_RESET * window:,}")


def reader(variant: str, window: int, bos_token_id: int | None, **reading: Any) -> Read:
    """The function that reads (E, L + 1) ids as the variant says, and gives their losses (E, L)."""

    def read(model: RecurrentGemmaForCausalLM, ids: Tensor) -> Tensor:
        if variant == "attention-off":
            with attention_off(model):
                return token_losses(model, ids, **reading)
        if variant == "narrow":
            return token_losses(with_window(model, window - 1), ids, **reading)
        windows = VARIANTS[variant].reset_windows
        if windows is None:
            return token_losses(model, ids, **reading)
        every = windows * window
        if variant == "recurrence-reset":
            return token_losses(model, ids, reset_every=every, reset="recurrence", **reading)
        return token_losses(model, ids, reset_every=every, reset_token_id=bos_token_id, **reading)

    return read


def measure_positions(
    subject: Subject,
    *,
    length: int | None,
    count: int,
    variants: Sequence[str] = tuple(VARIANTS),
    report: Callable[[str], None] = lambda line: None,
    **reading: Any,
) -> dict[str, Any]:
    """Losses by position, whole and with each part taken away, with intervals; the differences are paired.

    The text is read ``count`` times in excerpts of ``length`` tokens (None: all of it), and in short ones of 8 windows
    that begin two windows apart. A variant whose resets are too far apart for the excerpts is left out, and said so.
    """
    model, window = subject.model, subject.model.config.attention_window_size
    bos = subject.tokenizer.bos_token_id if subject.begins_with_bos else None
    tokens = len(subject.text_ids)
    long = excerpts(subject.text_ids, count=count, length=length, bos_token_id=bos)
    reads: list[Excerpts] = [long]
    if SHORT_WINDOWS * window < long.places.shape[1]:
        short = max(1, min(tokens // (2 * window), 20 * count))
        reads.append(excerpts(subject.text_ids, count=short, length=SHORT_WINDOWS * window, bos_token_id=bos))
    variants = [variant for variant in variants if _fits(variant, window, long.places.shape[1], report)]
    places = torch.cat([read.places.flatten() for read in reads])
    positions = torch.cat([read.positions.flatten() for read in reads])
    losses = {}
    for variant in variants:
        read = reader(variant, window, bos, **reading)
        losses[variant] = torch.cat([read(model, part.ids).flatten() for part in reads])
        report(f"{title(variant, window)}: loss {losses[variant].mean().item():.4f} over {len(places):,} tokens")
    blocks = BlockBootstrap(places // BLOCK)
    documents = int(subject.documents.max()) + 1
    chapters = BlockBootstrap(subject.documents[places]) if documents >= LEAST_DOCUMENTS else None
    found: dict[str, Any] = {
        "excerpts": [{"count": len(read.ids), "length": read.places.shape[1]} for read in reads],
        "tokens_read": len(places),
        "text_tokens": tokens,
        "documents": documents,
        "block": BLOCK,
        "reference": [window, 2 * window - 1],
    }
    # Of the long excerpts, which hold every token equally often where they are as long as the text.
    in_long = torch.arange(len(places)) < long.places.numel()
    found["overall"] = {
        variant: _overall(losses[variant], losses[WHOLE], in_long, blocks, chapters, paired=variant != WHOLE)
        for variant in variants
    }
    reference = (positions >= window) & (positions < 2 * window)
    found["bins"] = []
    for span in log_spaced_bins(long.places.shape[1]):
        where = (positions >= span[0]) & (positions <= span[-1])
        found["bins"].append(
            {
                "first": span[0],
                "last": span[-1],
                "tokens": int(where.sum()),
                "loss": {variant: list(blocks.mean(loss, where)) for variant, loss in losses.items()},
                "difference": _differences(losses, blocks, where),
                "drift": _drift(losses[WHOLE], blocks, where, reference),
            }
        )
    found["since_reset"] = {
        variant: _since_reset(losses, variant, blocks, positions, VARIANTS[variant].reset_windows * window)
        for variant in variants
        if VARIANTS[variant].reset_windows is not None
    }
    return found


def _fits(variant: str, window: int, length: int, report: Callable[[str], None]) -> bool:
    """Whether an excerpt is long enough for every distance from a reset to occur in it."""
    windows = VARIANTS[variant].reset_windows
    if windows is None or length >= 2 * windows * window:
        return True
    report(f"{title(variant, window)}: left out, since excerpts have {length:,} tokens, less than twice as many")
    return False


def _overall(
    loss: Tensor, whole: Tensor, where: Tensor, blocks: BlockBootstrap, chapters: BlockBootstrap | None, *, paired: bool
) -> dict[str, Any]:
    found: dict[str, Any] = {"loss": list(blocks.mean(loss, where))}
    if paired:
        found["difference"] = list(blocks.mean(loss - whole, where))
        found["difference_by_document"] = None if chapters is None else list(chapters.mean(loss - whole, where))
    return found


def _differences(losses: dict[str, Tensor], blocks: BlockBootstrap, where: Tensor) -> dict[str, list[float]]:
    return {
        variant: list(blocks.mean(loss - losses[WHOLE], where)) for variant, loss in losses.items() if variant != WHOLE
    }


def _drift(loss: Tensor, blocks: BlockBootstrap, where: Tensor, reference: Tensor) -> list[float] | None:
    """The loss at some positions less that at others; None where one side has too little text to be resampled."""
    if min(len(blocks.blocks[side].unique()) for side in (where, reference)) < LEAST_BLOCKS:
        return None
    return list(blocks.change(loss, where, reference))


def _since_reset(
    losses: dict[str, Tensor], variant: str, blocks: BlockBootstrap, positions: Tensor, every: int
) -> list[dict[str, Any]]:
    """The loss more than the whole model's, by the tokens read since the last reset."""
    since = (positions - 1) % every + 1
    found = []
    for span in log_spaced_bins(every, first=2):
        where = (since >= span[0]) & (since <= span[-1]) & (positions > every)
        difference = blocks.mean(losses[variant] - losses[WHOLE], where)
        found.append({"first": span[0], "last": span[-1], "tokens": int(where.sum()), "difference": list(difference)})
    return found


def measure_passkey(
    subject: Subject, *, lengths: Sequence[int], report: Callable[[str], None] = lambda line: None, **options: Any
) -> list[dict[str, Any]]:
    """The cells of ``passkey`` for each length and depth."""
    cells = []
    for length in lengths:
        found = passkey(subject.model, subject.tokenizer, lengths=[length], **subject.passkey, **options)
        for cell in found:
            report(
                f"passkey, {length:,} tokens, depth {cell.depth:g}: first in {cell.first.mean:.1%} "
                f"(chance {cell.chance:.0%}), exact in {cell.exact.mean:.1%}"
            )
        cells += [
            {**dataclasses.asdict(cell), "chance": cell.chance, "inside_window": cell.inside_window} for cell in found
        ]
    return cells
