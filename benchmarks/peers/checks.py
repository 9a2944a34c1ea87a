"""What a contestant has to show before it is timed: the numbers of ours, or, with weights of its own, its own twice."""

import torch
from torch import Tensor

from benchmarks.agreement import DECODED, LOGITS_TOLERANCE, PROMPT
from benchmarks.models import Size, random_ids
from benchmarks.peers.contestant import Contestant, UnavailableError


def check_same_weights(name: str, contestant: Contestant, ours: Contestant, size: Size, device: str) -> float:
    """The largest difference between the logits and the loss of ``contestant`` and of ours, in fp32, decoding included.

    Raises:
        ValueError: It is larger than fp32 rounding explains.
    """
    ids = _ids(size, device)
    expected = ours.logits(ids)
    difference = max(
        _largest(contestant.logits(ids) - expected),
        _largest(contestant.decoded_logits(ids, PROMPT) - expected),
        abs(contestant.loss(ids) - ours.loss(ids)),
    )
    # Written so that NaN fails.
    if not difference <= LOGITS_TOLERANCE:
        raise ValueError(
            f"{name}: expected logits and loss to differ from ours by at most {LOGITS_TOLERANCE:g} on equal weights, "
            f"got {difference:.3g}; no timing is reported until they agree."
        )
    return difference


def check_own_weights(contestant: Contestant, size: Size, device: str) -> float:
    """The largest difference between the logits that ``contestant`` gives in one pass and token by token, in fp32.

    Raises:
        UnavailableError: Its logits are not finite, or its cache gives others than its own single pass.
    """
    ids = _ids(size, device)
    logits = contestant.logits(ids)
    if not bool(logits.isfinite().all()):
        raise UnavailableError("its logits are not finite")
    difference = _largest(contestant.decoded_logits(ids, PROMPT) - logits)
    bar = LOGITS_TOLERANCE * max(1.0, _largest(logits))
    if not difference <= bar:
        raise UnavailableError(
            f"its cached decoding differs from its own single pass by {difference:.3g}, more than {bar:.3g}"
        )
    return difference


def _ids(size: Size, device: str) -> Tensor:
    return random_ids(size, PROMPT + DECODED, device=device)


def _largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if bool(torch.isfinite(tensor).all()) else float("nan")
