"""Threads that generate on one model at once get, token by token, what each gets alone."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from recurrent_gemma.modeling import RecurrentGemmaCache
from tests.modeling.models import tiny_model

THREADS = 8
TOKENS = 30  # several windows


class GumbelNoise(LogitsProcessor):
    """Makes the likeliest token a sample. The generator is its own: torch's is one for all threads."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        uniform = torch.rand(scores.shape, generator=self.generator).clamp(1e-6, 1 - 1e-6)
        return scores - torch.log(-torch.log(uniform))


@pytest.mark.parametrize("sampling", [False, True])
def test_eight_threads_equal_their_serial_runs(sampling: bool):
    model = tiny_model()
    prompts = [torch.randint(3, 97, (1, 3 + 2 * index)) for index in range(THREADS)]
    together = Barrier(THREADS)

    def generate(index: int, wait: bool) -> torch.Tensor:
        cache = RecurrentGemmaCache(model.config)
        noise = LogitsProcessorList([GumbelNoise(index)] if sampling else [])
        ids = prompts[index]
        # In several calls: threads interleave within answers and between them.
        for _ in range(3):
            if wait:
                together.wait(timeout=600)
            ids = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=cache,
                logits_processor=noise,
                do_sample=False,
                max_new_tokens=TOKENS // 3,
                eos_token_id=None,
                pad_token_id=0,
            )
        assert cache.columns == ids.shape[1] - 1
        return ids

    serial = [generate(index, wait=False) for index in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as threads:
        concurrent = list(threads.map(lambda index: generate(index, wait=True), range(THREADS)))
    assert len({tuple(ids[0, -TOKENS:].tolist()) for ids in serial}) == THREADS
    for alone, beside_others in zip(serial, concurrent, strict=True):
        assert torch.equal(alone, beside_others)
