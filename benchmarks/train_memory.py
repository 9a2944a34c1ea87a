"""The case of a training step's memory: what it takes at its peak beyond the weights and their gradients."""

import gc
import json
import sys
from dataclasses import dataclass

import torch

from benchmarks.models import SIZES, Model, build_in_tree, build_ours, random_ids
from benchmarks.peers.transformers_model import loss_of
from benchmarks.resident import in_its_own_process, watch

BUILDERS = {"ours": build_ours, "in-tree": build_in_tree}


@dataclass(frozen=True)
class StepMemory:
    """One implementation at one length.

    Attributes:
        implementation: ``"ours"``, ``"ours, checkpointed"`` (gradient checkpointing) or ``"in-tree"``.
        length: Tokens of the row.
        loss: Of the step, by which the implementations are seen to do the same.
        peak_bytes: The most memory during forward and backward, above weights and gradients. On CPU resident memory,
            on an accelerator what is allocated.
    """

    implementation: str
    length: int
    loss: float
    peak_bytes: int


@dataclass(frozen=True)
class TrainMemoryResult:
    """All steps of one size, with the bytes of its weights and of the logits that the longest row has in fp32."""

    weight_bytes: int
    logits_bytes: int
    steps: tuple[StepMemory, ...]


def train_memory(size: str, *, lengths: list[int], device: str = "cpu", dtype: str = "float32") -> TrainMemoryResult:
    """The most memory of one training step, ours and in-tree, each in a process of its own.

    Args:
        size: Name of the shapes.
        lengths: Tokens of the one row.
        device, dtype: Where and in what to train.

    Raises:
        ValueError: The implementations give different losses.
    """
    steps = []
    for length in lengths:
        found = [
            _measured(implementation, size, length, device, dtype)
            for implementation in ("ours", "ours, checkpointed", "in-tree")
        ]
        losses = [step.loss for step in found]
        # Rounding of bf16 logits, in fp32 three digits less; and torch's cross entropy, which in-tree calls, adds the
        # vocabulary up in fp32, in eight lanes: at 256k its loss is 2e-4 from that in fp64, where ours is 3e-6 from it.
        bar = (1e-2 if dtype == "bfloat16" else 1e-5) * max(losses) + 2**-24 * SIZES[size].vocab_size / 8
        if not max(losses) - min(losses) <= bar:
            raise ValueError(f"loss: expected the same of every implementation, got {losses} at {length} tokens.")
        steps += found
    bytes_of_dtype = getattr(torch, dtype).itemsize
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in build_ours(SIZES[size]).parameters()) * bytes_of_dtype
    return TrainMemoryResult(weights, 4 * max(lengths) * SIZES[size].vocab_size, tuple(steps))


def _measured(implementation: str, size: str, length: int, device: str, dtype: str) -> StepMemory:
    loss, peak = in_its_own_process("benchmarks.train_memory", implementation, size, str(length), device, dtype)
    return StepMemory(implementation, length, loss, peak)


def measure_in_this_process(implementation: str, size: str, length: str, device: str, dtype: str) -> None:
    name, *checkpointed = implementation.split(", ")
    with torch.device(device):
        model = BUILDERS[name](SIZES[size]).to(dtype=getattr(torch, dtype)).train()
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = random_ids(SIZES[size], int(length), device=device)
    _step(model, ids[:, :32])  # allocates the gradients, and what libraries allocate once
    gc.collect()
    losses = []
    if device == "cpu":
        _, peak, _ = watch(lambda: losses.append(_step(model, ids)))
    else:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        losses.append(_step(model, ids))
        peak = torch.cuda.max_memory_allocated(device) - before
    print(json.dumps([losses[0], peak]))


def _step(model: Model, ids: torch.Tensor) -> float:
    model.zero_grad(set_to_none=False)
    loss = loss_of(model, ids)
    loss.backward()
    return loss.item()


if __name__ == "__main__":
    measure_in_this_process(*sys.argv[1:])
