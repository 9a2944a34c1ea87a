"""The memory case: bytes of the cache and of the whole process while one sequence grows, one token at a time."""

import time
from dataclasses import dataclass
from statistics import linear_regression

import psutil
import torch

import recurrent_gemma
from benchmarks.models import FIRST_ORDINARY_ID, SIZES, build_ours
from recurrent_gemma.modeling import RecurrentGemmaCache, RecurrentGemmaForCausalLM


@dataclass(frozen=True)
class Sample:
    """The process after ``tokens`` tokens; the time is the mean of the tokens since the sample before."""

    tokens: int
    rss_bytes: int
    cache_bytes: int
    seconds_per_token: float


@dataclass(frozen=True)
class MemoryResult:
    """Samples at regular distances, and the slopes of least-squares lines through them in bytes per token."""

    model: str
    samples: tuple[Sample, ...]
    rss_slope: float
    cache_slope: float


def generation_memory(model: RecurrentGemmaForCausalLM, name: str, *, tokens: int, every: int) -> MemoryResult:
    """Decode greedily and look at the process every so many tokens.

    The loop keeps the cache and the last token, and nothing that grows. Slopes are taken from the first sample on;
    before it, the window and the allocator's pools fill.

    Args:
        model: The model that decodes.
        name: What it is, for the report.
        tokens: Tokens to decode.
        every: Tokens between two samples, and before the first.

    Raises:
        ValueError: ``every`` is below 1, or ``tokens`` holds fewer than two samples.
    """
    if every < 1 or tokens < 2 * every:
        raise ValueError(
            f"tokens, every: expected two samples or more (tokens >= 2 * every), got tokens={tokens}, every={every}."
        )
    process = psutil.Process()
    cache = RecurrentGemmaCache(model.config)
    token = torch.tensor([[FIRST_ORDINARY_ID]])
    samples = []
    begin = time.perf_counter()
    with torch.inference_mode():
        for count in range(1, tokens + 1):
            token = model(input_ids=token, past_key_values=cache, use_cache=True).logits.argmax(dim=-1)
            if count % every == 0:
                seconds = (time.perf_counter() - begin) / every
                samples.append(Sample(count, process.memory_info().rss, cache_bytes(cache), seconds))
                begin = time.perf_counter()
    counts = [sample.tokens for sample in samples]
    return MemoryResult(
        model=name,
        samples=tuple(samples),
        rss_slope=linear_regression(counts, [sample.rss_bytes for sample in samples]).slope,
        cache_slope=linear_regression(counts, [sample.cache_bytes for sample in samples]).slope,
    )


def cache_bytes(cache: RecurrentGemmaCache) -> int:
    """Bytes that the cache keeps alive: whole storages, so that a small view of a large tensor counts as large."""
    tensors = [tensor for layer in cache.layers for tensor in layer.load() or ()]
    if cache.next_position is not None:
        tensors.append(cache.next_position)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def model_for_memory(size: str) -> tuple[RecurrentGemmaForCausalLM, str]:
    """The embedded model for ``"demo"`` where the package holds it, else a random one of that size; and its name."""
    directory = recurrent_gemma.demo_path()
    if size == "demo" and (directory / "config.json").is_file():
        model = RecurrentGemmaForCausalLM.from_pretrained(directory, dtype=torch.float32)
        return model, f"the embedded demo model, {directory.name}/"
    return build_ours(SIZES[size]), f"random weights, size {size}"
