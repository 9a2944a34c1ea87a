"""Whether a device computes what the CPU computes: every op with its gradients, and the small model that is shipped."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory import model_for_memory
from benchmarks.models import FIRST_ORDINARY_ID
from recurrent_gemma.modeling.ops.causal_conv1d import causal_conv1d
from recurrent_gemma.modeling.ops.cross_entropy import linear_cross_entropy
from recurrent_gemma.modeling.ops.local_attention import local_attention
from recurrent_gemma.modeling.ops.rg_lru import rg_lru

# Largest difference over the largest magnitude, of outputs and of gradients. fp32: reordered sums of a few hundred
# terms. bf16: results rounded to 2^-9, and in attention and the logits products of rounded factors.
BARS = {torch.float32: (2e-5, 2e-4), torch.bfloat16: (2e-2, 5e-2)}
# Of logits of up to 30, which in fp32 have passed a handful of layers.
LOGITS_BAR = 1e-3
# Neither a multiple of a kernel's tile nor of a block of attention.
LENGTH, WIDTH, HEADS, WINDOW, WORDS = 333, 96, 4, 100, 500


@dataclass(frozen=True)
class Check:
    """One comparison with the CPU."""

    what: str
    dtype: str
    difference: float
    bar: float

    @property
    def passed(self) -> bool:
        # Written so that NaN fails.
        return self.difference <= self.bar


@dataclass(frozen=True)
class _Op:
    """An op under test: how it is called, its differentiable inputs in fp32, and its other tensors."""

    call: Callable[..., Tensor]
    inputs: dict[str, Tensor]
    fixed: dict[str, Tensor]


def check_ops(device: str, *, length: int = LENGTH, impl: Mapping[str, str] | None = None) -> list[Check]:
    """Every op on ``device`` against its reference on the CPU, outputs and gradients, in fp32 and bf16.

    Rows are packed and have pads. The reference computes in fp32 from the same rounded inputs.

    Args:
        device: Where the op runs.
        length: Tokens of a row.
        impl: Name of an op -> the implementation of it to run; default: the one that the device has.
    """
    checks = []
    for name, op in _ops(length).items():
        chosen = {} if impl is None or name not in impl else {"impl": impl[name]}
        for dtype, bars in BARS.items():
            rounded = {key: tensor.to(dtype) for key, tensor in op.inputs.items()}
            expected = _outputs(op, {key: tensor.float() for key, tensor in rounded.items()}, "cpu", impl="reference")
            actual = _outputs(op, rounded, device, **chosen)
            for part, tensor in expected.items():
                bar = bars[0] if part == "output" else bars[1]
                checks.append(Check(f"{name}, {part}", _name(dtype), _difference(actual[part], tensor), bar))
    return checks


def check_model(device: str, *, tokens: int = 40) -> list[Check]:
    """The small model on ``device`` against itself on the CPU: logits of a prompt, and greedily generated tokens."""
    model, name = model_for_memory("demo")
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(FIRST_ORDINARY_ID, model.config.vocab_size, (2, 300), generator=generator)
    results = []
    for place in ("cpu", device):
        model.to(place)
        prompt = ids.to(place)
        with torch.inference_mode():
            logits = model(input_ids=prompt).logits.cpu()
        options: dict[str, Any] = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        generated = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options).cpu()
        results.append((logits, generated))
    (expected, text), (actual, other) = results
    return [
        Check(f"{name}, logits", "float32", (actual - expected).abs().max().item(), LOGITS_BAR),
        Check(f"{name}, generated tokens that differ", "float32", float((text != other).sum()), 0.0),
    ]


def expect_passed(checks: list[Check]) -> None:
    """Raise ValueError that names every check that failed."""
    failed = [f"{c.what} ({c.dtype}): {c.difference:.2e}, at most {c.bar:.0e}" for c in checks if not c.passed]
    if failed:
        raise ValueError(f"device: expected the numbers of the CPU, got others: {'; '.join(failed)}")


def _ops(length: int) -> dict[str, _Op]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    generator = torch.Generator().manual_seed(0)
    starts = torch.zeros(2, length, dtype=torch.bool)
    valid = torch.ones(2, length, dtype=torch.bool)
    # One row begins behind pads; the other goes on from a state, and a new document begins in it.
    valid[0, : length // 5] = False
    starts[0, length // 5] = starts[1, length // 2] = True
    markers = {"starts": starts, "valid": valid}
    tokens = (2, length, WIDTH)
    heads = (2, HEADS, length, WIDTH // HEADS)

    def recurrence(**tensors: Any) -> Tensor:
        return rg_lru(**tensors)[0]

    def convolution(**tensors: Any) -> Tensor:
        return causal_conv1d(**tensors)[0]

    def attention(**tensors: Any) -> Tensor:
        return local_attention(**tensors, window=min(WINDOW, length // 2))[0]

    def loss(**tensors: Any) -> Tensor:
        return linear_cross_entropy(**tensors, soft_cap=30.0)

    gates = {"x": draw(*tokens), "input_gate": draw(*tokens), "recurrence_gate": draw(*tokens)}
    return {
        "rg_lru": _Op(recurrence, {**gates, "a_param": draw(WIDTH) - 4, "h0": draw(2, WIDTH)}, markers),
        "causal_conv1d": _Op(convolution, {"x": draw(*tokens), "weight": draw(WIDTH, 4), "bias": draw(WIDTH)}, markers),
        "local_attention": _Op(
            attention,
            {"query": draw(*heads), "key": draw(2, 1, *heads[2:]), "value": draw(2, 1, *heads[2:])},
            markers,
        ),
        "linear_cross_entropy": _Op(
            loss,
            {"hidden": draw(length, WIDTH), "weight": draw(WORDS, WIDTH) / WIDTH**0.5},
            {"labels": torch.randint(WORDS, (length,), generator=generator)},
        ),
    }


def _outputs(op: _Op, inputs: dict[str, Tensor], device: str, **options: str) -> dict[str, Tensor]:
    """Output and gradients, fp32 on the CPU."""
    leaves = {name: tensor.detach().to(device).requires_grad_() for name, tensor in inputs.items()}
    fixed = {name: tensor.to(device) for name, tensor in op.fixed.items()}
    output = op.call(**leaves, **fixed, **options)
    if output.ndim == 3:
        # What stands at a pad has no meaning.
        output = output * fixed["valid"][..., None]
    # Weights that differ from place to place, so that no gradient cancels.
    weights = torch.linspace(-1, 1, output.numel(), device=device).reshape(output.shape).cos()
    gradients = torch.autograd.grad((output.float() * weights).sum(), list(leaves.values()))
    found = {"output": output, **{f"gradient of {name}": g for name, g in zip(leaves, gradients, strict=True)}}
    return {name: tensor.detach().float().cpu() for name, tensor in found.items()}


def _difference(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
