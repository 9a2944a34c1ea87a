"""The profile case: where the time of ours goes, by kind of op, in a prefill, a training step and decoding."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, record_function

from benchmarks.models import Size, build_ours, random_ids
from benchmarks.peers.transformers_model import TransformersModel
from benchmarks.timing import synchronize
from recurrent_gemma.modeling.layers import RecurrentGemmaAttention, RecurrentGemmaConv1d, RecurrentGemmaRglru

PRODUCTS, RECURRENCE, CONVOLUTION, ATTENTION = "matrix products", "recurrence", "convolution", "attention"
ELEMENTWISE, HEAD, OPTIMIZER, REST = (
    "norms and elementwise",
    "embedding, logits, loss",
    "optimizer",
    "rest and overhead",
)
KINDS = (PRODUCTS, RECURRENCE, CONVOLUTION, ATTENTION, ELEMENTWISE, HEAD, OPTIMIZER, REST)

_SCOPE = "kind of op: "
_SCOPES: tuple[tuple[type[nn.Module], str], ...] = (
    (RecurrentGemmaRglru, RECURRENCE),
    (RecurrentGemmaConv1d, CONVOLUTION),
    (RecurrentGemmaAttention, ATTENTION),
)
_LINEAR = {"aten::linear", "aten::mm", "aten::addmm", "aten::matmul", "aten::mv", "aten::addmv"}
_BATCHED = {"aten::bmm", "aten::baddbmm"}


@dataclass(frozen=True)
class Part:
    """One of the three works: its wall-clock seconds under the profiler, and those of each kind of op."""

    seconds: float
    by_kind: dict[str, float]


@dataclass(frozen=True)
class ProfileResult:
    """Name of the work -> where its time goes."""

    parts: dict[str, Part]


def profile(size: Size, *, length: int, tokens: int, device: str = "cpu", dtype: str = "float32") -> ProfileResult:
    """Where the time of ours goes by kind of op: a prefill and a training step of ``length`` tokens, and decoding."""
    with torch.device(device):
        ours = TransformersModel(build_ours(size))
    ours.to(dtype)
    ids = random_ids(size, length, device=device)
    decoding = ours.decoding(ids, tokens)
    works: dict[str, Callable[[], object]] = {
        f"prefill, {length:,} tokens": ours.prefill(ids),
        f"decoding, {tokens:,} tokens": decoding.seconds_per_token,
    }
    parts = {name: _profiled(work, ours.model, device) for name, work in works.items()}
    parts[f"training step, {length:,} tokens"] = _profiled(ours.training_step(ids), ours.model, device)
    return ProfileResult(parts)


def _profiled(work: Callable[[], object], model: nn.Module, device: str) -> Part:
    work()  # warms up
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device != "cpu" else [])
    with profiler_scopes(model), torch.profiler.profile(activities=activities) as profiler:
        synchronize()
        begin = time.perf_counter()
        work()
        synchronize()
        seconds = time.perf_counter() - begin
    events = profiler.events()
    assert events is not None
    forward = {e.sequence_nr: e for e in events if e.sequence_nr >= 0 and backward_root(e) is None}
    by_kind: dict[str, float] = defaultdict(float)
    for event in events:
        taken = event.self_cpu_time_total if device == "cpu" else event.self_device_time_total
        by_kind[kind_of(event, forward)] += 1e-6 * taken
    # Whatever passes between ops: Python, and the dispatch of the next one.
    by_kind[REST] += max(0.0, seconds - sum(by_kind.values()))
    return Part(seconds, {kind: by_kind[kind] for kind in KINDS})


@contextmanager
def profiler_scopes(model: Any) -> Iterator[None]:
    """Within it, ops inside certain modules are seen by the profiler below an event that names their kind."""
    scopes = [(module, kind) for module in model.modules() for cls, kind in _SCOPES if isinstance(module, cls)]
    scopes.append((model.get_input_embeddings(), HEAD))
    if not model.training:
        # In training the head gives the loss itself, by an op with a name, and only while it has no hooks.
        scopes.append((model.get_output_embeddings(), HEAD))
    opened: list[record_function] = []
    handles = []

    def enter(kind: str) -> None:
        opened.append(record_function(_SCOPE + kind))
        opened[-1].__enter__()

    def leave() -> None:
        opened.pop().__exit__(None, None, None)

    for module, kind in scopes:
        handles.append(module.register_forward_pre_hook(lambda _module, _inputs, kind=kind: enter(kind)))
        handles.append(module.register_forward_hook(lambda _module, _inputs, _output: leave()))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def kind_of(event: Any, forward: dict[int, Any]) -> str:
    ancestors = list(_ancestors(event))
    names = [ancestor.name for ancestor in ancestors]
    if any(name.startswith("Optimizer.") for name in names):
        return OPTIMIZER
    root = backward_root(event)
    if root is not None and root.sequence_nr in forward:
        # An op of the backward belongs where the op belongs that it is the derivative of.
        names += [ancestor.name for ancestor in _ancestors(forward[root.sequence_nr])]
    if any("linear_cross_entropy" in name for name in names):
        return HEAD
    scope = next((name.removeprefix(_SCOPE) for name in names if name.startswith(_SCOPE)), None)
    if not event.name.startswith(("aten::", "recurrent_gemma::")):
        return REST
    # On CPU the work of linear() is done by an op below it, and where that is fused, by itself.
    is_product = event.name in _LINEAR or event.name.startswith("aten::mkldnn_linear")
    if (is_product and scope != HEAD) or (event.name in _BATCHED and scope != ATTENTION):
        return PRODUCTS
    return scope or ELEMENTWISE


def _ancestors(event: Any) -> Iterator[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent


def backward_root(event: Any) -> Any:
    """The event of the backward's node that this one is below, None in the forward."""
    return next((e for e in _ancestors(event) if e.name.startswith("autograd::engine::evaluate_function")), None)
