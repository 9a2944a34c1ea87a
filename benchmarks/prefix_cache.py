"""The prefix cache case: answers below a shared system prompt, cold and warm, and hit rates on a branching workload."""

import itertools
from dataclasses import dataclass

import torch

from benchmarks.models import FIRST_ORDINARY_ID
from benchmarks.prefix_trace import StatesOnly, branching_trace, replay, whole_caches_hit_rate
from benchmarks.timing import Timing, clock, interleave
from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling import PrefixCache, RecurrentGemmaForCausalLM

_QUESTION = 50
_VOCABULARY = 256_000


@dataclass(frozen=True)
class HitRates:
    """Token hit rates of one workload in ``max_bytes``: by policy, and of whole caches that share nothing."""

    max_bytes: int
    flops_per_byte: float
    lru: float
    whole_caches: float


@dataclass(frozen=True)
class PrefixCacheResult:
    """Times of an answer, and hit rates at the sizes of the 2B model in bfloat16.

    Attributes:
        model: What was timed.
        work: What one answer is.
        timings: ``"cold"`` and ``"warm"``.
        prefix_bytes: What the prefix cache held of the system prompt, and of the answers.
        requests: Of the workload.
        hit_rates: One for every bound of bytes.
    """

    model: str
    work: str
    timings: dict[str, Timing]
    prefix_bytes: int
    requests: int
    hit_rates: tuple[HitRates, ...]


def prefix_cache(
    model: RecurrentGemmaForCausalLM, name: str, *, system: int, tokens: int, repeats: int, requests: int
) -> PrefixCacheResult:
    """Answers below a shared system prompt, cold and warm; hit rates on a branching workload.

    Cold reads system prompt and question; warm has read the system prompt before. Every answer is to a new question.

    Args:
        model: The model that answers.
        name: What it is, for the report.
        system: Tokens of the system prompt.
        tokens: Tokens of an answer.
        repeats: Rounds.
        requests: Requests of the workload.

    Raises:
        ValueError: A warm answer is not the cold one.
    """
    vocabulary = model.config.vocab_size
    generator = torch.Generator().manual_seed(1)

    def ids(length: int) -> torch.Tensor:
        return torch.randint(FIRST_ORDINARY_ID, vocabulary, (1, length), generator=generator)

    prefixes = PrefixCache(model.config, max_bytes=10**9)
    shared = ids(system)
    prefixes.prefill(model, shared)
    prompts = [torch.cat((shared, ids(_QUESTION)), dim=1) for _ in range(repeats + 1)]
    options = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": None}

    def cold(prompt: torch.Tensor) -> torch.Tensor:
        return model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)

    if not torch.equal(prefixes.generate(model, prompts[0], **options), cold(prompts[0])):
        raise ValueError("prefix_cache: expected equal answers, warm and cold, got different ones.")
    prefixes.clear()
    prefixes.prefill(model, shared)
    cold_prompts, warm_prompts = itertools.cycle(prompts), iter(prompts)
    timings = interleave(
        {
            "cold": clock(lambda: cold(next(cold_prompts))),
            "warm": clock(lambda: prefixes.generate(model, next(warm_prompts), **options)),
        },
        repeats=repeats,
    )
    return PrefixCacheResult(
        model=name,
        work=f"{tokens} tokens after a system prompt of {system} and a question of {_QUESTION}",
        timings=timings,
        prefix_bytes=prefixes.nbytes,
        requests=requests,
        hit_rates=hit_rates(requests),
    )


def hit_rates(requests: int, megabytes: tuple[int, ...] = (100, 200, 400)) -> tuple[HitRates, ...]:
    """Token hit rates on ``branching_trace`` at the sizes of the 2B model in bfloat16."""
    config = RecurrentGemmaConfig.from_preset("recurrentgemma-2b", dtype=torch.bfloat16)
    trace = list(branching_trace(requests, vocab_size=_VOCABULARY))
    found = []
    for bound in megabytes:
        rates = {}
        for policy in ("flops_per_byte", "lru"):
            prefixes = PrefixCache(config, max_bytes=bound * 10**6, policy=policy)
            replay(prefixes, StatesOnly(config, torch.bfloat16), iter(trace))
            rates[policy] = prefixes.statistics.token_hit_rate
        whole = whole_caches_hit_rate(config, iter(trace), max_bytes=bound * 10**6)
        found.append(HitRates(bound * 10**6, whole_caches=whole, **rates))
    return tuple(found)
