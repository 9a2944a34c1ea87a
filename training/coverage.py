"""What an adapter reaches: for every parameter of every block, whether it is adapted, trained or left as it is."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import nn

from recurrent_gemma.training.adapter_checks import require_peft

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

Status = Literal["adapted", "trained", "frozen"]

# What PEFT puts between a module's name and its parameters'.
_WRAPPERS = ("base_layer", "original_module", "token_adapter")

_KINDS = {"linear_x": "recurrent", "q_proj": "attention"}


@dataclass(frozen=True)
class ParameterCoverage:
    """One parameter of the model.

    Attributes:
        block: Number of the residual block; None outside of them.
        kind: ``"recurrent"`` or ``"attention"``; ``""`` outside of blocks.
        name: In its block, or in the model.
        status: ``"adapted"``: fixed, with an adapter beside it. ``"trained"``: trained itself, or in a copy that the
            adapter saves. ``"frozen"``: neither.
        parameters: How many numbers it holds.
        adapter_parameters: How many the active adapters hold for it, copies included.
    """

    block: int | None
    kind: str
    name: str
    status: Status
    parameters: int
    adapter_parameters: int


@dataclass(frozen=True)
class LoraCoverage:
    """Every parameter of a model once; ``str()`` gives a table in which blocks that are treated alike share rows."""

    rows: tuple[ParameterCoverage, ...]

    def count(self, status: Status | None = None) -> int:
        """Parameters of the model with ``status``; all of them when None."""
        return sum(row.parameters for row in self.rows if status in (None, row.status))

    @property
    def adapter_parameters(self) -> int:
        """Parameters that the adapters add."""
        return sum(row.adapter_parameters for row in self.rows)

    def __str__(self) -> str:
        lines = [("block", "parameter", "status", "parameters", "in adapters")]
        for label, rows in self._alike():
            lines += [
                (label if i == 0 else "", row.name, row.status, f"{row.parameters:,}", f"{row.adapter_parameters:,}")
                for i, row in enumerate(rows)
            ]
        lines.append(("all", "", "", f"{self.count():,}", f"{self.adapter_parameters:,}"))
        widths = [max(len(line[column]) for line in lines) for column in range(5)]
        table = [
            "  ".join(
                cell.rjust(width) if column > 2 else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        share = ", ".join(f"{self.count(status) / self.count():.1%} {status}" for status in ("adapted", "trained"))
        return "\n".join([*table, f"Of the model's parameters: {share}, the rest frozen."])

    def _alike(self) -> Iterator[tuple[str, list[ParameterCoverage]]]:
        """Rows outside of blocks, then those of one block of each group of blocks with the same rows."""
        outside = [row for row in self.rows if row.block is None]
        if outside:
            yield "none", outside
        groups: dict[Any, list[int]] = {}
        blocks: dict[int, list[ParameterCoverage]] = {}
        for block, found in groupby((row for row in self.rows if row.block is not None), key=lambda row: row.block):
            assert block is not None
            blocks[block] = list(found)
            alike = tuple((r.name, r.status, r.parameters, r.adapter_parameters) for r in blocks[block])
            groups.setdefault(alike, []).append(block)
        for members in groups.values():
            rows = blocks[members[0]]
            yield f"{_ranges(members)} ({rows[0].kind})", rows


def lora_coverage(model: "PreTrainedModel | PeftModel") -> LoraCoverage:
    """Say of every parameter whether the active adapters adapt it, train it or leave it alone.

    Args:
        model: A model of this family with an adapter of LoRA's kind (one that wraps layers or parameters) or without.
            A tied head is listed once, as the embeddings.

    Raises:
        ImportError: PEFT is not installed.
    """
    peft = require_peft()
    base: nn.Module = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    added: dict[str, int] = {}  # original parameters' names, and the sizes of their adapters and copies
    copied: set[str] = set()
    own: set[int] = set()  # ids of the adapters' parameters
    for target, size, is_copy, found in _additions(base):
        own |= found
        if size:
            added[target] = added.get(target, 0) + size
            if is_copy:
                copied.add(target)

    parameters = {_original(name): p for name, p in base.named_parameters() if id(p) not in own}
    kinds: dict[int | None, str] = {None: ""}
    for name in parameters:
        block, inside = _place(name)
        for part in inside.split("."):
            if block is not None and part in _KINDS:
                kinds[block] = _KINDS[part]
    rows = []
    for name, parameter in parameters.items():
        block, inside = _place(name)
        trained = name in copied or parameter.requires_grad
        status: Status = "trained" if trained else "adapted" if name in added else "frozen"
        rows.append(ParameterCoverage(block, kinds[block], inside, status, parameter.numel(), added.get(name, 0)))
    return LoraCoverage(tuple(rows))


class _Addition(NamedTuple):
    """What active adapters hold for one parameter."""

    target: str
    size: int
    is_copy: bool
    parameters: set[int]  # ids of the wrapper's own parameters, those of inactive adapters included


def _additions(base: nn.Module) -> Iterator[_Addition]:
    from peft.tuners.lora.layer import ParamWrapper
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    for name, module in base.named_modules():
        if isinstance(module, BaseTunerLayer):
            # Wrappers of parameters stand inside one another.
            extra = {n: p for n, p in _named_parameters(module) if "base_layer" not in n.split(".")}
            parameter = module.parameter_name if isinstance(module, ParamWrapper) else "weight"
            size = sum(p.numel() for n, p in extra.items() if not set(n.split(".")).isdisjoint(module.active_adapters))
            yield _Addition(f"{_original(name)}.{parameter}", size, False, set(map(id, extra.values())))
        elif isinstance(module, ModulesToSaveWrapper):
            for adapter, copy in module.modules_to_save.items():
                for n, p in _named_parameters(copy):
                    size = p.numel() if adapter in module.active_adapters else 0
                    yield _Addition(f"{_original(name)}.{n}", size, True, {id(p)})


def _named_parameters(module: Any) -> Iterator[tuple[str, nn.Parameter]]:
    yield from module.named_parameters()


def _original(name: str) -> str:
    """``name`` as it is in the model without adapters."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _place(name: str) -> tuple[int | None, str]:
    parts = name.split(".")
    if "layers" not in parts:
        return None, name
    index = parts.index("layers")
    return int(parts[index + 1]), ".".join(parts[index + 2 :])


def _ranges(numbers: list[int]) -> str:
    """``0-1, 3`` for 0, 1 and 3."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
