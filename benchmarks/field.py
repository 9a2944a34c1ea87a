"""Who is measured side by side: implementations that agree, each built, checked and put where it is timed."""

from dataclasses import dataclass, field

import psutil
import torch

from benchmarks.agreement import CHECK_WINDOW, Agreement, check_agreement
from benchmarks.models import Size, build_ours, build_pair, share_parameters
from benchmarks.peers import PEERS, Contestant, TransformersModel, UnavailableError
from benchmarks.peers.checks import check_own_weights, check_same_weights

# Weights, gradients, and the two moments of AdamW.
_TRAINING_COPIES = 4


@dataclass(frozen=True)
class Entrant:
    """What is known of a contestant besides its times.

    Attributes:
        parameters: Number of parameters, tied ones once.
        difference: Of its logits, in fp32: from ours on equal weights, or, with weights of its own, between its cached
            decoding and its own single pass.
        note: What a reader has to know to compare it, if anything.
        state_bytes: What it keeps of a prompt, where tokens were decoded.
    """

    parameters: int
    difference: float
    note: str = ""
    state_bytes: int | None = None


@dataclass
class Field:
    """The contestants of one measurement.

    Attributes:
        ours: This package's, whose weights the others have if they can.
        agreement: How far ours and in-tree are apart.
        contestants: Name -> contestant, ours first.
        entrants: What is reported of each.
        left_out: Name -> why it does not take part.
    """

    ours: TransformersModel
    agreement: Agreement
    contestants: dict[str, Contestant] = field(default_factory=dict)
    entrants: dict[str, Entrant] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def build_field(case: str, size: Size, *, peers: tuple[str, ...], device: str, dtype: str) -> Field:
    """Ours and its peers, ready to be timed at a case, in ``dtype`` on ``device``.

    Whoever claims to compute the same has to, in fp32, over more than three (short) windows: on the weights that are
    timed, or, at a size with ``checked_layers``, on a stand-in of as many layers of the same shapes.

    Raises:
        ValueError: An implementation of the same model gives other numbers.
    """
    with torch.device(device):
        pair = build_pair(size.checked)
        agreement = check_agreement(pair)
        short = build_ours(size.checked, window=CHECK_WINDOW)
        share_parameters(pair.ours, short)
        model = pair.ours if size.checked is size else build_ours(size)
    checked = TransformersModel(short)
    differences, left_out = _checks(case, size.checked, checked, peers, device)
    del checked, short, pair

    ours = TransformersModel(model)
    ours.to(dtype)
    found = Field(ours, agreement, {"ours": ours}, {"ours": Entrant(ours.parameters, agreement.prefill)}, left_out)
    for name, difference in differences.items():
        try:
            _expect_memory(case, ours, device, same_weights=PEERS[name].same_weights)
            with torch.device(device):
                contestant = PEERS[name].build(size, ours)
            contestant.to(dtype)
        except UnavailableError as reason:
            found.left_out[name] = str(reason)
            continue
        found.contestants[name] = contestant
        found.entrants[name] = Entrant(contestant.parameters, difference, contestant.note)
    return found


def _checks(
    case: str, size: Size, ours: TransformersModel, peers: tuple[str, ...], device: str
) -> tuple[dict[str, float], dict[str, str]]:
    """The difference of every peer that can take part, and why the others cannot."""
    differences, left_out = {}, {}
    for name in peers:
        peer = PEERS[name]
        try:
            if case not in peer.cases:
                raise UnavailableError(f"it is measured at {', '.join(peer.cases)} only")
            with torch.device(device):
                contestant = peer.build(size, ours)
            if peer.same_weights:
                differences[name] = check_same_weights(name, contestant, ours, size, device)
            else:
                differences[name] = check_own_weights(contestant, size, device)
        except UnavailableError as reason:
            left_out[name] = str(reason)
    return differences, left_out


def _expect_memory(case: str, ours: TransformersModel, device: str, *, same_weights: bool) -> None:
    """Raise UnavailableError where another model like ours would not fit."""
    weight = next(ours.model.parameters())
    # Weights of another architecture are made in fp32, and only then get the dtype that is timed.
    itemsize = weight.itemsize if same_weights else torch.float32.itemsize
    needed = ours.parameters * max(itemsize, weight.itemsize * (_TRAINING_COPIES if case == "train" else 1))
    available = psutil.virtual_memory().available if device == "cpu" else torch.cuda.mem_get_info(device)[0]
    if needed > available:
        raise UnavailableError(
            f"its weights need {needed / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are left"
        )
