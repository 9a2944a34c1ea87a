"""The memory case: bytes of the cache and of the whole process while one sequence grows, one token at a time."""

import time
from dataclasses import dataclass
from statistics import linear_regression

import psutil
import torch

import recurrent_gemma
from benchmarks.models import FIRST_ORDINARY_ID, SIZES, build_ours
from recurrent_gemma.modeling import RecurrentGemmaCache, RecurrentGemmaForCausalLM

# Tokens of a chunk when the text is read again.
_CHUNK = 1000


@dataclass(frozen=True)
class Sample:
    """The process after ``tokens`` tokens; the time is the mean of the tokens since the sample before."""

    tokens: int
    rss_bytes: int
    cache_bytes: int
    seconds_per_token: float


@dataclass(frozen=True)
class MemoryResult:
    """Samples at regular distances, the slopes of lines through them, and whether the state is still right at the end.

    Attributes:
        model: What decoded.
        samples: The process at regular distances.
        rss_slope, cache_slope: Bytes per token, of least-squares lines.
        reread_difference: Largest difference between the final state and that of reading the same tokens in chunks,
            over the largest magnitude of each tensor.
    """

    model: str
    samples: tuple[Sample, ...]
    rss_slope: float
    cache_slope: float
    reread_difference: float


def generation_memory(model: RecurrentGemmaForCausalLM, name: str, *, tokens: int, every: int) -> MemoryResult:
    """Decode by sampling and look at the process every so many tokens; then read the same tokens in chunks.

    The loop keeps the cache, and the ids in memory made beforehand: nothing that grows. Slopes are taken from the first
    sample on; before it, the window and the allocator's pools fill.

    Args:
        model: The model that decodes.
        name: What it is, for the report.
        tokens: Tokens to decode.
        every: Tokens between two samples, and before the first.

    Raises:
        ValueError: ``every`` is below 1, ``tokens`` holds fewer than two samples, or the final state is not finite.
    """
    if every < 1 or tokens < 2 * every:
        raise ValueError(
            f"tokens, every: expected two samples or more (tokens >= 2 * every), got tokens={tokens}, every={every}."
        )
    process = psutil.Process()
    cache = RecurrentGemmaCache(model.config)
    ids = torch.full((1, tokens + 1), FIRST_ORDINARY_ID)
    generator = torch.Generator().manual_seed(0)
    samples = []
    begin = time.perf_counter()
    with torch.inference_mode():
        for count in range(1, tokens + 1):
            logits = model(input_ids=ids[:, count - 1 : count], past_key_values=cache).logits[0, -1].float()
            ids[0, count] = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)
            if count % every == 0:
                seconds = (time.perf_counter() - begin) / every
                samples.append(Sample(count, process.memory_info().rss, cache_bytes(cache), seconds))
                begin = time.perf_counter()
        difference = _reread_difference(model, cache, ids[:, :tokens])
    counts = [sample.tokens for sample in samples]
    return MemoryResult(
        model=name,
        samples=tuple(samples),
        rss_slope=linear_regression(counts, [sample.rss_bytes for sample in samples]).slope,
        cache_slope=linear_regression(counts, [sample.cache_bytes for sample in samples]).slope,
        reread_difference=difference,
    )


def _reread_difference(model: RecurrentGemmaForCausalLM, cache: RecurrentGemmaCache, ids: torch.Tensor) -> float:
    again = RecurrentGemmaCache(model.config)
    for chunk in ids.split(_CHUNK, dim=1):
        model(input_ids=chunk, past_key_values=again, logits_to_keep=1)
    difference = 0.0
    for name, expected in again.tensors().items():
        actual = cache.tensors()[name].double()
        if not bool(actual.isfinite().all()):
            raise ValueError(f"{name}: expected a finite state after {ids.shape[1]} tokens, got NaN or infinity.")
        largest = expected.double().abs().max().item() or 1.0
        difference = max(difference, (actual - expected).abs().max().item() / largest)
    return difference


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
