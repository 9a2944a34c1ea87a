"""The speed cases: prefill, training step and decoding, of the floor, of ours and of in-tree, in one process."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from benchmarks.agreement import Agreement, check_agreement
from benchmarks.floor import MatrixProducts, WeightRead
from benchmarks.models import Model, Pair, Size, build_pair, random_ids
from benchmarks.quantized import quantized
from benchmarks.timing import Timing, clock, interleave, synchronize
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM

DECODE_PROMPT = 16


@dataclass(frozen=True)
class SpeedResult:
    """What one speed case found.

    Attributes:
        work: What was timed, in words.
        floor: What the floor is, in words.
        floor_rate: The floor's rate, from its median: what this machine gave at best in this process.
        agreement: How far ours and in-tree were apart before anything was timed.
        timings: Seconds of ``floor``, ``ours``, what is quantized of it, and ``in-tree``.
    """

    work: str
    floor: str
    floor_rate: str
    agreement: Agreement
    timings: dict[str, Timing]


def prefill(size: Size, *, length: int, repeats: int, device: str = "cpu", dtype: str = "float32") -> SpeedResult:
    """Read a prompt of ``length`` tokens: a cache and the logits of its last token."""
    pair, agreement = _agreeing_pair(size, device, dtype)
    ids = random_ids(size, length, device=device)
    products = MatrixProducts(pair.ours, length, logits=1)
    timings = interleave(
        {
            "floor": clock(products),
            "ours": clock(partial(_read_prompt, pair.ours, ids)),
            "in-tree": clock(partial(_read_prompt, pair.in_tree, ids)),
        },
        repeats=repeats,
    )
    return SpeedResult(
        work=f"prefill of {length:,} tokens (with a cache, logits of the last token)",
        floor="the model's matrix products alone",
        floor_rate=f"{products.flops / timings['floor'].median / 1e9:.0f} GFLOP/s",
        agreement=agreement,
        timings=timings,
    )


def train(size: Size, *, length: int, repeats: int, device: str = "cpu", dtype: str = "float32") -> SpeedResult:
    """One training step on one row of ``length`` tokens: forward, loss at every token, backward, AdamW.

    As Trainer asks for it: with the number of labels, and nothing but the loss is read. Both implementations train the
    same parameters with the same optimizer, so their weights are equal at every step.
    """
    pair, agreement = _agreeing_pair(size, device, dtype)
    ids = random_ids(size, length, device=device)
    products = MatrixProducts(pair.ours, length, logits=length)
    optimizer = torch.optim.AdamW(pair.ours.parameters(), lr=1e-5)
    pair.ours.train()
    pair.in_tree.train()
    timings = interleave(
        {
            # The backward of a product is two of its size, with respect to either factor.
            "floor": clock(products, scale=3.0),
            "ours": clock(partial(_training_step, pair.ours, ids, optimizer)),
            "in-tree": clock(partial(_training_step, pair.in_tree, ids, optimizer)),
        },
        repeats=repeats,
    )
    return SpeedResult(
        work=f"training step of {length:,} tokens (forward, loss, backward, AdamW)",
        floor="three times the matrix products of the forward",
        floor_rate=f"{3 * products.flops / timings['floor'].median / 1e9:.0f} GFLOP/s",
        agreement=agreement,
        timings=timings,
    )


def decode(
    size: Size,
    *,
    tokens: int,
    repeats: int,
    device: str = "cpu",
    dtype: str = "float32",
    quantize: Sequence[str] = (),
) -> SpeedResult:
    """One token through generate(), greedy: the mean over ``tokens`` tokens, the prompt and the first one not counted.

    Ours is measured once more for each scheme in ``quantize``.

    Raises:
        ValueError: ``tokens`` is below 1.
    """
    if tokens < 1:
        raise ValueError(f"tokens: expected at least 1, got {tokens}.")
    pair, agreement = _agreeing_pair(size, device, dtype)
    prompt = random_ids(size, DECODE_PROMPT, device=device)
    read = WeightRead(pair.ours)
    timings = interleave(
        {
            "floor": read,
            "ours": _decoding(pair.ours, prompt, tokens),
            **{f"ours {name}": _decoding(quantized(pair.ours, name), prompt, tokens) for name in quantize},
            "in-tree": _decoding(pair.in_tree, prompt, tokens),
        },
        repeats=repeats,
    )
    return SpeedResult(
        work=f"one token through generate() (mean of {tokens:,} after a prompt of {DECODE_PROMPT})",
        floor=f"reading the weights' {read.bytes / 1e6:.1f} MB once",
        floor_rate=f"{read.bytes / timings['floor'].median / 1e9:.1f} GB/s",
        agreement=agreement,
        timings=timings,
    )


def _agreeing_pair(size: Size, device: str, dtype: str) -> tuple[Pair, Agreement]:
    """Both implementations, whose numbers agree in fp32, in the dtype they are timed in."""
    with torch.device(device):
        pair = build_pair(size)
    agreement = check_agreement(pair)
    return pair.to(dtype=getattr(torch, dtype)), agreement


@torch.inference_mode()
def _read_prompt(model: Model, ids: Tensor) -> None:
    model(input_ids=ids, use_cache=True, logits_to_keep=1)


def _training_step(model: Model, ids: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss_of(model, ids).backward()
    optimizer.step()


def loss_of(model: Model, ids: Tensor) -> Tensor:
    """The mean loss of ids (1, L), asked for as Trainer does in training. In-tree takes no ``num_items_in_batch``."""
    count = {"num_items_in_batch": ids.shape[1] - 1} if isinstance(model, RecurrentGemmaForCausalLM) else {}
    return model(input_ids=ids, labels=ids, use_cache=False, **count).loss


class _Stopwatch(BaseStreamer):
    """Notes when generate() hands over the prompt and each token."""

    def __init__(self) -> None:
        self.stamps: list[float] = []

    def put(self, value: Tensor) -> None:
        synchronize()
        self.stamps.append(time.perf_counter())

    def end(self) -> None:
        pass


def _decoding(model: Model, prompt: Tensor, tokens: int) -> Callable[[], float]:
    def seconds_per_token() -> float:
        stopwatch = _Stopwatch()
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=tokens + 1,
            do_sample=False,
            streamer=stopwatch,
        )
        # The prompt, the token that its forward pass gave, then one stamp for each decoded token.
        _, first, *decoded = stopwatch.stamps
        return (decoded[-1] - first) / len(decoded)

    return seconds_per_token
