"""Engines for tests, what they are asked, and what Transformers says to the same tokens.

Log-probabilities are compared, of prompts as well as of what is generated: tokens alone would hide a window that is one
off. What is right comes from one uncached forward of our own class over prompt and answer together.
"""

import contextlib
import dataclasses
import functools
import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recurrent_gemma import RecurrentGemmaForCausalLM, demo_path
from tests.held_out import held_out_chapters
from tests.support import require
from tests.tolerances import SERVED_LOGPROBS, assert_close

vllm = require("vllm", "serve")

from vllm.distributed import cleanup_dist_env_and_memory  # noqa: E402
from vllm.outputs import RequestOutput  # noqa: E402

from recurrent_gemma.serving.engine import batch, layers, model, state  # noqa: E402
from recurrent_gemma.serving.engine.recurrent_block import RecurrentBlock  # noqa: E402

# W of the demo model: a query sees W + 1 keys.
WINDOW = 128
# Tokens of a block on CPU.
BLOCK = 32


def text(length: int, start: int = 0) -> list[int]:
    """Ids of ``length`` tokens of held-out text, BOS first; other starts give other text."""
    longest = held_out_chapters()[-1][0].tolist()
    return [longest[0], *longest[1 + start : start + length]]


# Modules that need vLLM come from here, where it is asked for first.
__all__ = ["batch", "layers", "model", "state"]


@dataclasses.dataclass
class Engine:
    """One running engine, in this process."""

    llm: Any
    done: dict[str, RequestOutput] = dataclasses.field(default_factory=dict)

    def generate(self, prompts: Sequence[list[int]], **options: Any) -> list[RequestOutput]:
        """Answers to prompts of ids, all asked at once; greedy, with log-probabilities, unless ``options`` say else."""
        requests = [{"prompt_token_ids": ids} for ids in prompts]
        return self.llm.generate(requests, sampling(**options), use_tqdm=False)

    def add(self, name: str, ids: list[int], **options: Any) -> None:
        """Ask without waiting; :meth:`step` and :meth:`finish` go on."""
        self.llm.llm_engine.add_request(name, {"prompt_token_ids": ids}, sampling(**options))

    def step(self) -> None:
        """Run one batch."""
        self.done.update({output.request_id: output for output in self.llm.llm_engine.step() if output.finished})

    def finish(self) -> dict[str, RequestOutput]:
        """Answers to everything that was added since the last time, by name."""
        while self.llm.llm_engine.has_unfinished_requests():
            self.step()
        done, self.done = self.done, {}
        return done

    @property
    def layers(self) -> dict[str, Any]:
        """The layers that have pages, by name."""
        return self.runner.compilation_config.static_forward_context

    @property
    def runner(self) -> Any:
        """vLLM's model runner."""
        return self.llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner

    def poison(self) -> None:
        """Write NaN to every page but the null page, as if others had left them so."""
        for layer in self.layers.values():
            for pages in layer.kv_cache if isinstance(layer, RecurrentBlock) else (layer.kv_cache,):
                pages[1:] = torch.nan


@contextlib.contextmanager
def running(checkpoint: Path | None = None, **options: Any) -> Iterator[Engine]:
    """An engine of ``checkpoint`` (default: the demo model) in fp32, with few pages, ended on exit."""
    defaults: dict[str, Any] = {
        "model": str(demo_path() if checkpoint is None else checkpoint),
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 2048,
        "max_num_seqs": 8,
        "enable_prefix_caching": False,
        "seed": 0,
        "max_logprobs": -1,
        "num_gpu_blocks_override": 256,
    }
    engine = Engine(vllm.LLM(**{**defaults, **options}))
    try:
        yield engine
    finally:
        engine.llm.llm_engine.engine_core.shutdown()
        engine.llm = None
        gc.collect()
        cleanup_dist_env_and_memory()


def sampling(**options: Any) -> Any:
    """Sampling parameters: greedy, eight tokens whatever they are, and log-probabilities of the three likeliest."""
    defaults: dict[str, Any] = {
        "temperature": 0.0,
        "max_tokens": 8,
        "ignore_eos": True,
        "logprobs": 3,
        "prompt_logprobs": 3,
    }
    return vllm.SamplingParams(**{**defaults, **options})


def reference(checkpoint: Path | None = None) -> RecurrentGemmaForCausalLM:
    """Our own model in fp32 (default: the demo model)."""
    return _load(demo_path() if checkpoint is None else checkpoint)


@functools.cache
def _load(checkpoint: Path) -> RecurrentGemmaForCausalLM:
    return RecurrentGemmaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


@torch.inference_mode()
def expected_logprobs(ids: list[int], checkpoint: Path | None = None) -> Tensor:
    """(L, vocab_size) fp32: log-probabilities of the token after each of ``ids``, by one forward without a cache."""
    return reference(checkpoint)(torch.tensor([ids]), use_cache=False).logits[0].float().log_softmax(-1)


def check(outputs: Sequence[RequestOutput], checkpoint: Path | None = None) -> int:
    """Assert that all log-probabilities of answers are Transformers'; the number of those that were compared."""
    compared = 0
    for output in outputs:
        for answer in output.outputs:
            ids = [*output.prompt_token_ids, *answer.token_ids]
            given = [*(output.prompt_logprobs or [None] * len(output.prompt_token_ids)), *answer.logprobs]
            values = [{token: entry.logprob for token, entry in (entries or {}).items()} for entries in given]
            compared += check_entries(ids, values, checkpoint)
    return compared


def check_entries(ids: list[int], entries: list[dict[int, float]], checkpoint: Path | None = None) -> int:
    """:func:`check` of what an engine gave at each of ``ids``: log-probabilities after the tokens before it, by id."""
    assert len(entries) == len(ids)
    right = expected_logprobs(ids, checkpoint)
    pairs = [(place - 1, token, value) for place, given in enumerate(entries) for token, value in given.items()]
    places, tokens, values = (torch.tensor(column) for column in zip(*pairs, strict=True))
    assert_close(values, right[places, tokens], SERVED_LOGPROBS, "log-probabilities")
    return len(pairs)


@dataclasses.dataclass(frozen=True)
class Row:
    """One sequence of a batch, as recurrent blocks see it."""

    tokens: int
    has_initial: bool
    slot: int


@contextlib.contextmanager
def recorded(patch: pytest.MonkeyPatch) -> Iterator[list[list[Row]]]:
    """The batches that run inside: what was claimed of them is asserted, not hoped for."""
    batches: list[list[Row]] = []
    build = batch.RecurrentBatchBuilder.build

    def recording(self: Any, *args: Any, **kwargs: Any) -> batch.RecurrentBatch:
        made = build(self, *args, **kwargs)
        columns = (made.cu_seqlens.diff(), made.has_initial, made.slots)
        batches.append([Row(*row) for row in zip(*(column.tolist() for column in columns), strict=True)])
        return made

    with patch.context() as inner:
        inner.setattr(batch.RecurrentBatchBuilder, "build", recording)
        yield batches
