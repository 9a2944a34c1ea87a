"""With prefix caching, what is found again is the state that a cold engine would have, at blocks of 32 tokens."""

import itertools
from collections.abc import Iterator

import pytest

from tests.serving.engines import BLOCK, WINDOW, Engine, check, recorded, running, text


@pytest.fixture
def engine() -> Iterator[Engine]:
    with running(enable_prefix_caching=True) as made:
        yield made


def test_blocks_are_short(engine: Engine):
    config = engine.llm.llm_engine.vllm_config
    assert config.cache_config.mamba_cache_mode == "align"
    assert config.cache_config.block_size == config.cache_config.mamba_block_size == BLOCK


def test_warm_equals_cold(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    prompts = [text(120), text(100), text(3 * WINDOW + 7, start=500)]
    options = {"prompt_logprobs": None, "max_tokens": 40}
    cold = engine.generate(prompts, **options)
    with recorded(monkeypatch) as batches:
        warm = engine.generate(prompts, **options)
    assert [output.num_cached_tokens for output in cold] == [0, 96, 0]
    assert [output.num_cached_tokens for output in warm] == [96, 96, 384]
    assert all(row.has_initial for rows in batches for row in rows)
    check([*cold, *warm])
    assert [output.outputs[0].token_ids for output in warm] == [output.outputs[0].token_ids for output in cold]


def test_a_shared_prefix(engine: Engine):
    shared = text(100)
    prompts = [[*shared, *text(30 + 5 * index, start=300 * index)[1:]] for index in range(1, 6)]
    options = {"prompt_logprobs": None, "max_tokens": 20}
    engine.generate([shared], **options)
    outputs = engine.generate(prompts, **options)
    assert [output.num_cached_tokens for output in outputs] == [96] * 5
    check(outputs)


def test_a_conversation_goes_on(engine: Engine):
    ids = text(70)
    hits = []
    for turn in range(4):
        (output,) = engine.generate([ids], prompt_logprobs=None, max_tokens=50)
        check([output])
        hits.append(output.num_cached_tokens)
        ids = [*ids, *output.outputs[0].token_ids, *text(20, start=400 * turn)[1:]]
    assert hits[0] == 0 and all(later > earlier for earlier, later in itertools.pairwise(hits))


def test_pages_found_again_are_not_changed(engine: Engine):
    # The first goes on from a page that the second starts from as well.
    prompts = [text(200), text(200)[:150], text(200)]
    for ids in prompts:
        check(engine.generate([ids], prompt_logprobs=None, max_tokens=70))
    check(engine.generate(prompts, prompt_logprobs=None, max_tokens=70))


def test_a_seed_draws_the_same_in_any_chunks(engine: Engine):
    # 140 tokens are read as 128 and 12 here, and at once without prefix caching.
    options = {"temperature": 1.0, "seed": 5, "max_tokens": 12, "prompt_logprobs": None}
    (first,) = engine.generate([text(140)], **options)
    (again,) = engine.generate([text(140)], **options)
    with running() as whole:
        (expected,) = whole.generate([text(140)], **options)
    assert first.outputs[0].token_ids == again.outputs[0].token_ids == expected.outputs[0].token_ids
    check([first, again])
