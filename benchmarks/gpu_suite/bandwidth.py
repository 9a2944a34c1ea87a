"""The recurrence alone against the memory's bandwidth, beside scans of other packages; and the device's peak."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from benchmarks.timing import Timing, clock, interleave
from recurrent_gemma.modeling.ops.rg_lru import rg_lru

_DIFFERENCE = 1e-4
# Large enough that no cache holds it.
_COPIED_BYTES = 2**31


@dataclass(frozen=True)
class ScanResult:
    """The recurrence alone.

    Attributes:
        timings: Seconds of each scan.
        bytes: What each moves at least: its inputs read once and its outputs written once.
        bandwidth: Bytes a second of the fastest copy, read and written.
        left_out: Scans that are not there, and why.
    """

    timings: dict[str, Timing]
    bytes: dict[str, int]
    bandwidth: float
    left_out: dict[str, str]


@dataclass(frozen=True)
class Scan:
    """A scan of another package: of x and a, or log a, (B, L, R), or (B, R, L) with ``channels_first``."""

    run: Callable[[Tensor, Tensor], Tensor]
    takes_log: bool
    channels_first: bool


def peak(device: str, *, dtype: str, size: int = 8192, repeats: int = 20) -> float:
    """Multiplications and additions a second of the fastest product of two square matrices of ``size``."""
    left, right = (torch.randn(size, size, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    output = torch.empty_like(left)
    run = clock(partial(torch.mm, left, right, out=output))
    return 2 * size**3 / min(run() for _ in range(repeats))


def bandwidth(device: str, *, nbytes: int = _COPIED_BYTES, repeats: int = 20) -> float:
    """Bytes a second of the fastest copy of ``nbytes``, reading and writing counted."""
    source = torch.ones(nbytes, dtype=torch.uint8, device=device)
    run = clock(partial(torch.empty_like(source).copy_, source))
    return 2 * nbytes / min(run() for _ in range(repeats))


def rg_lru_alone(
    device: str,
    *,
    batch: int,
    length: int,
    width: int,
    dtype: str,
    training: bool,
    repeats: int,
    copied_bytes: int = _COPIED_BYTES,
) -> ScanResult:
    """Time of the op ``rg_lru`` on (batch, length, width), gates included, beside bare scans ``h = a h + x`` of others.

    Each is compared with a loop over time before it is measured.

    Raises:
        ValueError: A scan gives other numbers than the loop.
    """
    place = {"device": device, "dtype": getattr(torch, dtype), "requires_grad": training}
    x, input_gate, recurrence_gate = (torch.randn(batch, length, width, **place) for _ in range(3))
    a_param = torch.randn(width, device=device, requires_grad=training)
    scans, left_out = _other_scans(device)
    for name, scan in scans.items():
        expect_recurrence(name, scan, device)
    runs: dict[str, Callable[[], object]] = {
        "ours": partial(_run, lambda *inputs: rg_lru(*inputs, a_param)[0], (x, input_gate, recurrence_gate), training)
    }
    log_a = torch.empty_like(x).uniform_(-1, -1e-3)
    for name, scan in scans.items():
        shape = (batch, width, length) if scan.channels_first else x.shape
        # In the layout that it wants; which value lies where makes no difference to the time.
        inputs = tuple(t.detach().view(shape) for t in (x, log_a if scan.takes_log else log_a.exp()))
        runs[name] = partial(_run, scan.run, tuple(t.requires_grad_(training) for t in inputs), training)
    timings = interleave({name: clock(run) for name, run in runs.items()}, repeats=repeats, warmup=3)
    # Forward: inputs and the output. Backward: the output's gradient, inputs again, and their gradients.
    nbytes = {
        name: x.nbytes * ((inputs + 1) + training * (2 * inputs + 1))
        for name, inputs in {"ours": 3, **dict.fromkeys(scans, 2)}.items()
    }
    return ScanResult(timings, nbytes, bandwidth(device, nbytes=copied_bytes), left_out)


def _run(scan: Callable[..., Tensor], inputs: tuple[Tensor, ...], training: bool) -> None:
    output = scan(*inputs)
    if training:
        torch.autograd.grad(output, inputs, output.detach())


def _other_scans(device: str) -> tuple[dict[str, Scan], dict[str, str]]:
    """The scans of other packages, and why some are missing."""
    scans, left_out = {}, {}
    for name, module, make in (
        ("fla hgrn", "fla.ops.hgrn", _hgrn),
        ("accelerated-scan", "accelerated_scan.warp", _accelerated_scan),
    ):
        if torch.device(device).type != "cuda":
            left_out[name] = f"it is for CUDA devices, and this is {device}"
            continue
        try:
            scans[name] = make(importlib.import_module(module))
        except ImportError as error:
            left_out[name] = f"it cannot be imported ({error})"
    return scans, left_out


def _hgrn(module: ModuleType) -> Scan:
    return Scan(lambda x, log_a: module.fused_recurrent_hgrn(x, log_a)[0], takes_log=True, channels_first=False)


def _accelerated_scan(module: ModuleType) -> Scan:
    return Scan(lambda x, a: module.scan(a, x), takes_log=False, channels_first=True)


def expect_recurrence(name: str, scan: Scan, device: str) -> None:
    length, width = 64, 32
    x, a = torch.randn(1, length, width, device=device), torch.rand(1, length, width, device=device) + 1e-3
    h, states = torch.zeros(1, width, device=device), []
    for t in range(length):
        h = a[:, t] * h + x[:, t]
        states.append(h)
    inputs = (x, a.log() if scan.takes_log else a)
    found = scan.run(*(t.mT.contiguous() for t in inputs)).mT if scan.channels_first else scan.run(*inputs)
    difference = (found - torch.stack(states, dim=1)).abs().max().item()
    if not difference <= _DIFFERENCE:
        raise ValueError(f"{name}: expected the recurrence h = a h + x within {_DIFFERENCE:g}, got {difference:.3g}.")
