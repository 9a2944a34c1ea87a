"""Both implementations give the same numbers, or nothing is measured: a fast wrong answer is no result."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from benchmarks.models import Pair, build_pair, random_ids
from recurrent_gemma.modeling import RecurrentGemmaCache
from recurrent_gemma.modeling.compat import CACHE_NAME

# fp32, a handful of layers: logits lie in [-30, 30], where one rounding is 2e-6.
LOGITS_TOLERANCE = 1e-4
# In-tree computes 1 - a^2 by cancellation, whose rounding reaches the gradients of the recurrence.
GRADIENTS_TOLERANCE = 1e-3
# Short, so that a short prompt passes it several times.
CHECK_WINDOW = 16
PROMPT, DECODED = 3 * CHECK_WINDOW + 5, 8


@dataclass(frozen=True)
class Agreement:
    """Largest differences between ours and in-tree on equal weights.

    Attributes:
        prefill: Absolute, of the logits of one pass.
        decode: Absolute, of the logits of single tokens after a prompt, each implementation with its own cache.
        gradients: max|difference| / max|gradient| of the worst parameter.
    """

    prefill: float
    decode: float
    gradients: float


def check_agreement(pair: Pair) -> Agreement:
    """Compare logits, decoding and gradients on the pair's parameters, over more than three (short) windows.

    Raises:
        ValueError: They differ by more than fp32 rounding explains.
    """
    device = pair.ours.device
    with device:
        short = build_pair(pair.size, window=CHECK_WINDOW, share_with=pair)
    ids = random_ids(pair.size, PROMPT + DECODED, device=device)
    agreement = Agreement(
        # The pair that is timed, and the one whose window the prompt passes.
        prefill=max(_prefill_difference(pair, ids), _prefill_difference(short, ids)),
        decode=_decode_difference(short, ids),
        gradients=_gradient_difference(short, ids),
    )
    for name, tolerance in (
        ("prefill", LOGITS_TOLERANCE),
        ("decode", LOGITS_TOLERANCE),
        ("gradients", GRADIENTS_TOLERANCE),
    ):
        # Written so that NaN fails.
        if not getattr(agreement, name) <= tolerance:
            raise ValueError(
                f"{name}: expected ours and in-tree to differ by at most {tolerance:g} on equal weights, got "
                f"{getattr(agreement, name):.3g}; no timing is reported until they agree. If no test fails, this "
                "release of Transformers may be the cause: take the newest."
            )
    return agreement


@torch.inference_mode()
def _prefill_difference(pair: Pair, ids: Tensor) -> float:
    ours, in_tree = (model(input_ids=ids, use_cache=True).logits for model in (pair.ours, pair.in_tree))
    return _max_difference(ours, in_tree)


@torch.inference_mode()
def _decode_difference(pair: Pair, ids: Tensor) -> float:
    prompt, rest = ids.split((PROMPT, DECODED), dim=1)
    caches = RecurrentGemmaCache(pair.ours.config), DynamicCache(config=pair.in_tree.config)
    difference = 0.0
    for columns in (prompt, *rest.split(1, dim=1)):
        ours, in_tree = (
            model(input_ids=columns, use_cache=True, **{CACHE_NAME: cache}).logits
            for model, cache in zip((pair.ours, pair.in_tree), caches, strict=True)
        )
        difference = max(difference, _max_difference(ours, in_tree))
    return difference


def _gradient_difference(pair: Pair, ids: Tensor) -> float:
    parameters = list(pair.ours.parameters())
    ours, in_tree = (
        torch.autograd.grad(model(input_ids=ids, labels=ids, use_cache=False).loss, parameters)
        for model in (pair.ours, pair.in_tree)
    )
    return max(_max_difference(a, b) / b.abs().max().item() for a, b in zip(ours, in_tree, strict=True))


def _max_difference(actual: Tensor, expected: Tensor) -> float:
    return (actual - expected).abs().max().item()
