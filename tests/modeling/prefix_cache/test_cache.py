"""Warm answers equal cold ones, and no token is read twice, whatever is stored, evicted or asked by many threads."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.prefix_trace import StatesOnly
from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.configuration.state_size import state_bytes
from recurrent_gemma.modeling import PrefixCache, RecurrentGemmaCache
from tests.modeling.models import tiny_config, tiny_model
from tests.modeling.prefix_cache.trees import check, paths, tensors
from tests.tolerances import (
    SPLIT_EQUALS_WHOLE_LOGITS,
    assert_close,
    bf16_model_tolerance,
    logits_tolerance,
    relative_root_mean_square_error,
)

SHAPES = {
    "shipped pattern": {},
    "all recurrent": {"block_types": ["recurrent"]},
    "all attention": {"block_types": ["attention"]},
    "lru_width = width": {"lru_width": 32},
    "two key heads": {"num_key_value_heads": 2},
    "one recurrent layer": {"num_hidden_layers": 1, "block_types": ["recurrent"]},
    "one attention layer": {"num_hidden_layers": 1, "block_types": ["attention"]},
    "window as long as the prompt": {"attention_window_size": 29},
    "window longer than the answer": {"attention_window_size": 100},
}
GREEDY = {"do_sample": False, "eos_token_id": None}
LARGE = 10**8


def draw(n: int) -> torch.Tensor:
    return torch.randint(3, 97, (1, n))


def cold(model, ids, tokens: int) -> torch.Tensor:
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, **GREEDY)


@torch.no_grad()
def next_logits(model, ids, cache=None, read: int = 0) -> torch.Tensor:
    """Logits (1, V) after ``ids``, of which the cache has read the first ``read``."""
    return model(ids[:, read:], past_key_values=cache).logits[:, -1]


def expect_exact(model, ids, cache) -> None:
    """A cache that has read all but the last of ``ids`` goes on as a fresh run does."""
    assert cache.columns == ids.shape[1] - 1 == int(cache.next_position)
    expected = next_logits(model, ids)
    actual = next_logits(model, ids, cache, ids.shape[1] - 1)
    assert_close(actual, expected, logits_tolerance(SPLIT_EQUALS_WHOLE_LOGITS, expected), "logits")


@pytest.mark.parametrize("shape", SHAPES)
def test_warm_answers_equal_cold_ones_token_by_token(shape):
    model = tiny_model(tiny_config(**SHAPES[shape]))
    prefixes = PrefixCache(model.config, max_bytes=LARGE, min_tokens=1)
    system, branch = draw(20), draw(5)
    prompts = [torch.cat(parts, dim=1) for parts in [(system, draw(9)), (system, branch, draw(4))]]
    prompts += [torch.cat((system, branch, draw(n)), dim=1) for n in (1, 4, 60)] + [system, *prompts[:1]]
    for prompt in prompts:
        warm = prefixes.generate(model, prompt, max_new_tokens=40, **GREEDY)
        assert torch.equal(warm, cold(model, prompt, 40))
        # The next turn goes on from the answer.
        assert prefixes.match(torch.cat((warm, draw(3)), dim=1)) >= warm.shape[1] - 1
        check(prefixes)
    assert prefixes.statistics.hits == len(prompts) - 3


@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_equals_a_cold_run_in_the_same_pieces_bit_by_bit(shape):
    model = tiny_model(tiny_config(**SHAPES[shape])).to(torch.bfloat16)
    prefixes = PrefixCache(model.config, max_bytes=LARGE)
    system = draw(20)
    for _ in range(2):
        prefixes.prefill(model, torch.cat((system, draw(9)), dim=1))
    prompt = torch.cat((system, draw(9)), dim=1)
    assert prefixes.match(prompt) == 20
    cache = RecurrentGemmaCache(model.config)
    with torch.no_grad():
        model(prompt[:, :20], past_key_values=cache)
        model(prompt[:, 20:-1], past_key_values=cache)
    expected = next_logits(model, prompt, cache.clone(), 28)
    actual = next_logits(model, prompt, prefixes.prefill(model, prompt[:, :-1]), 28)
    assert torch.equal(actual, expected)
    # Against one piece, it is as far as two bf16 runs may be.
    error = relative_root_mean_square_error(actual, next_logits(model, prompt))
    assert error <= 2 * bf16_model_tolerance(model.config.num_hidden_layers)
    expected = model.generate(prompt, past_key_values=cache, max_new_tokens=40, **GREEDY)
    assert torch.equal(prefixes.generate(model, prompt, max_new_tokens=40, **GREEDY), expected)
    check(prefixes)


def test_a_shared_system_prompt_is_read_once(model, fed):
    prefixes = PrefixCache(model.config, max_bytes=LARGE)
    system, lengths = draw(2000), (5, 17, 40, 3)
    prefixes.prefill(model, system)
    for n in lengths:
        prefixes.generate(model, torch.cat((system, draw(n)), dim=1), max_new_tokens=6, **GREEDY)
    assert sum(fed) == 2000 + sum(n + 5 for n in lengths)
    statistics = prefixes.statistics
    assert (statistics.lookups, statistics.hits) == (5, 4)
    assert statistics.tokens_reused == 4 * 2000
    assert statistics.tokens_asked == 5 * 2000 + sum(n - 1 for n in lengths)
    assert statistics.token_hit_rate == statistics.tokens_reused / statistics.tokens_asked


def test_a_repeated_prompt_reads_its_last_token_only(model, fed):
    prefixes = PrefixCache(model.config, max_bytes=LARGE)
    prompt = draw(50)
    first = prefixes.generate(model, prompt, max_new_tokens=3, **GREEDY)
    fed.clear()
    assert torch.equal(prefixes.generate(model, prompt, max_new_tokens=3, **GREEDY), first)
    assert fed == [1, 1, 1]
    fed.clear()
    prefixes.generate(model, torch.cat((first, draw(4)), dim=1), max_new_tokens=1, **GREEDY)
    # The answer's last token, which had not been read, and the new turn.
    assert sum(fed) == 5


def test_a_branch_inside_an_edge_is_read_up_to_once_more_and_stored(model, fed):
    prefixes = PrefixCache(model.config, max_bytes=LARGE, min_tokens=10)
    stem = draw(30)
    for n, read in ((20, [50]), (21, [30, 21]), (22, [22])):
        fed.clear()
        ids = torch.cat((stem, torch.full((1, 1), n), draw(n - 1)), dim=1)
        cache = prefixes.prefill(model, ids)
        assert fed == read and cache.columns == 30 + n
        expect_exact(model, torch.cat((ids, draw(1)), dim=1), cache)
    assert sorted(len(path) for path in paths(prefixes._tree)) == [30, 50, 51, 52]
    # A place that saves fewer tokens than min_tokens is not worth a snapshot.
    fed.clear()
    prefixes.prefill(model, torch.cat((stem, torch.full((1, 1), 22), draw(9)), dim=1))
    prefixes.prefill(model, torch.cat((stem[:, :9], torch.full((1, 1), 2), draw(9)), dim=1))
    assert fed == [10, 19]
    check(prefixes)


def test_ids_that_end_inside_an_edge_are_stored_where_they_end(model, fed):
    prefixes = PrefixCache(model.config, max_bytes=LARGE)
    ids = draw(40)
    prefixes.prefill(model, ids)
    expect_exact(model, ids[:, :31], prefixes.prefill(model, ids[:, :30]))
    fed.clear()
    prefixes.prefill(model, ids[:, :30])
    assert fed == []
    assert [prefixes.match(ids[:, :n]) for n in (29, 30, 39, 40)] == [0, 30, 30, 40]


def test_returned_caches_are_independent(model):
    prefixes = PrefixCache(model.config, max_bytes=LARGE)
    ids = draw(20)
    first = prefixes.prefill(model, ids)
    before = [tensor.clone() for tensor in tensors(prefixes._tree)]
    next_logits(model, draw(9), first)
    second = prefixes.prefill(model, ids)
    for cache in (first, second):
        for layer in cache.layers:
            for tensor in layer.load():
                tensor.fill_(7.0)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(prefixes._tree), strict=True))
    assert first.columns == 29
    more = torch.cat((ids, draw(1)), dim=1)
    expect_exact(model, more, prefixes.prefill(model, ids))


def test_insert_stores_what_a_cache_has_read_and_copies_it(model):
    prefixes = PrefixCache(model.config, max_bytes=LARGE)
    ids = draw(25)
    cache = RecurrentGemmaCache(model.config)
    next_logits(model, ids, cache)
    prefixes.insert(ids[0].tolist(), cache)
    for layer in cache.layers:
        for tensor in layer.load():
            tensor.zero_()
    assert prefixes.match(ids) == 25
    more = torch.cat((ids, draw(1)), dim=1)
    expect_exact(model, more, prefixes.prefill(model, ids.int()))


def test_it_is_exact_and_usable_within_and_after_inference_mode_and_with_the_backbone(model):
    prefixes = PrefixCache(model.config, max_bytes=LARGE)
    ids = draw(25)
    with torch.inference_mode():
        prefixes.prefill(model.model, ids)
    cache = prefixes.prefill(model, ids)
    logits = model(draw(5), past_key_values=cache).logits
    logits.sum().backward()
    model.zero_grad()


def test_ids_that_equal_the_pad_token_are_tokens(model):
    prefixes = PrefixCache(model.config, max_bytes=LARGE)
    ids = draw(20)
    ids[0, [0, 7, 19]] = model.generation_config.pad_token_id or 0
    for options in ({}, {"pad_token_id": int(ids[0, 0])}):
        warm = prefixes.generate(model, ids, max_new_tokens=5, **GREEDY, **options)
        assert torch.equal(warm, cold(model, ids, 5))


def test_generate_takes_what_a_tokenizer_gives_and_returns_what_generate_returns(model):
    prefixes = PrefixCache(model.config, max_bytes=LARGE)
    one = torch.tensor([[5]])
    assert torch.equal(prefixes.generate(model, one, max_new_tokens=9, **GREEDY), cold(model, one, 9))
    output = prefixes.generate(
        model, one, attention_mask=torch.ones_like(one), max_new_tokens=9, return_dict_in_generate=True, **GREEDY
    )
    assert torch.equal(output.sequences, cold(model, one, 9))
    assert prefixes.match(output.sequences) == 9


@pytest.mark.parametrize("policy", ["flops_per_byte", "lru"])
def test_the_bound_holds_and_answers_stay_exact_under_eviction(model, policy):
    prefixes = PrefixCache(model.config, max_bytes=14_000, policy=policy, min_tokens=1)
    stems = [draw(n) for n in (12, 25, 40)]
    for round_number in range(30):
        ids = torch.cat((stems[round_number % 3], draw(1 + round_number % 7)), dim=1)
        expect_exact(model, ids, prefixes.prefill(model, ids[:, :-1]))
        check(prefixes)
    statistics = prefixes.statistics
    assert statistics.evictions > 10 and statistics.hits > 0
    assert statistics.nbytes == prefixes.nbytes and statistics.snapshots == len(paths(prefixes._tree))


def test_clear_forgets_everything(model):
    prefixes = PrefixCache(model.config, max_bytes=LARGE)
    ids = draw(9)
    prefixes.prefill(model, ids)
    prefixes.clear()
    assert prefixes.nbytes == prefixes.match(ids) == 0
    assert prefixes.statistics == type(prefixes.statistics)()
    # Even another dtype is welcome now.
    prefixes.prefill(tiny_model().to(torch.bfloat16), ids)


STEP = st.tuples(
    st.integers(0, 1 << 16),  # which earlier sequence to start from
    st.integers(0, 1 << 16),  # how much of it
    st.lists(st.integers(3, 5), min_size=1, max_size=12),
    st.sampled_from(["prefill", "prefill", "remove"]),
)


@settings(max_examples=40)
@given(
    steps=st.lists(STEP, min_size=1, max_size=12),
    max_bytes=st.sampled_from([2000, 6000, LARGE]),
    policy=st.sampled_from(["flops_per_byte", "lru"]),
    window=st.sampled_from([2, 7, 30]),
)
def test_any_sequences_with_any_evictions_equal_uncached_runs(steps, max_bytes, policy, window):
    model = tiny_model(tiny_config(attention_window_size=window, num_hidden_layers=3))
    prefixes = PrefixCache(model.config, max_bytes=max_bytes, policy=policy, min_tokens=1)
    seen = [()]
    for which, cut, tokens, action in steps:
        if action == "remove":
            nodes = prefixes._tree.snapshots()
            if nodes:
                prefixes._tree.remove(nodes[which % len(nodes)])
        else:
            start = seen[which % len(seen)]
            word = start[: cut % (len(start) + 1)] + tuple(tokens) + (6,)
            ids = torch.tensor([word])
            expect_exact(model, ids, prefixes.prefill(model, ids[:, :-1]))
            seen.append(word)
        check(prefixes)


def test_eight_threads_share_one_cache_and_one_model(model):
    prefixes = PrefixCache(model.config, max_bytes=20_000, min_tokens=1)
    stem = draw(30)
    prompts = [torch.cat((stem[:, :k], draw(1 + i)), dim=1) for i, k in enumerate((30, 30, 30, 12, 12, 25))]
    expected = [cold(model, prompt, 8) for prompt in prompts]

    def answer(number):
        index = number % len(prompts)
        return index, prefixes.generate(model, prompts[index], max_new_tokens=8, **GREEDY)

    with ThreadPoolExecutor(8) as pool:
        for index, actual in pool.map(answer, range(64)):
            assert torch.equal(actual, expected[index])
    check(prefixes)
    assert prefixes.statistics.lookups == 64


@pytest.mark.parametrize("prefix", [500, 2048, 6000])
def test_at_2b_sizes_n_snapshots_cost_the_shared_window_and_half_a_megabyte_each(prefix):
    config = RecurrentGemmaConfig.from_preset("recurrentgemma-2b", dtype=torch.bfloat16)
    size = state_bytes(config)
    assert (size.recurrent + size.conv, size.window) == (460_800, 16_777_216)
    model = StatesOnly(config, torch.bfloat16)
    prefixes = PrefixCache(config, max_bytes=10**10)
    system, asked = torch.randint(0, 256_000, (prefix,)), 100
    prefixes.prefill(model, system)
    for _ in range(20):
        prefixes.prefill(model, torch.cat((system, torch.randint(0, 256_000, (asked,)))))
    assert model.tokens_read == prefix + 20 * asked
    snapshots, token = prefixes.statistics.snapshots, size.window // 2048
    assert snapshots == 21
    # Keys and values once a token: those of the system prompt in the window, and of every question.
    window = (min(prefix, 2048) + 20 * asked) * token
    assert prefixes.nbytes <= window + snapshots * 500_000
    assert prefixes.nbytes == window + snapshots * (size.recurrent + size.conv) + 4 * (prefix + 20 * asked)
    whole = state_bytes(config, length=prefix).total + 20 * state_bytes(config, length=prefix + asked).total
    assert prefix < 2048 or prefixes.nbytes < whole / 7
