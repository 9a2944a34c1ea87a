"""The static form: buffers that stay, the results of the default form, one compilation for all tokens."""

import shutil

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch._guards import TracingContext
from transformers import CompileConfig

from recurrent_gemma.modeling import RecurrentGemmaCache
from recurrent_gemma.modeling.cache import RingState
from tests.modeling.models import CONFIGS, WINDOW, tiny_config, tiny_model
from tests.tolerances import SPLIT_EQUALS_WHOLE_LOGITS, assert_close, assert_routes_agree

TWO_BLOCKS = tiny_config(num_hidden_layers=2, block_types=["recurrent", "attention"])
every_config = pytest.mark.parametrize("name", list(CONFIGS))


def build(name="shipped pattern"):
    return tiny_model(tiny_config(**CONFIGS[name]))


def draw_ids(*shape):
    return torch.randint(3, 97, shape)


def addresses(cache):
    counters = [cache.next_position, cache.last_ids]
    return [t.data_ptr() for t in (*(t for layer in cache.layers for t in layer.load()), *counters)]


@torch.no_grad()
def read(model, ids, cache, cuts, mask=None):
    ends = [*cuts, ids.shape[1]]
    pieces = []
    for begin, end in zip([0, *cuts], ends, strict=True):
        part = None if mask is None else mask[:, :end]
        pieces.append(model(ids[:, begin:end], attention_mask=part, past_key_values=cache).logits)
    return torch.cat(pieces, dim=1)


def test_its_counters_are_buffers_and_it_may_use_those_of_another():
    model, ids = build(), draw_ids(2, 5)
    cache = RecurrentGemmaCache(model.config, static=True, batch_size=2)
    assert cache.last_ids.tolist() == [[-1] * 8] * 2 and cache.next_position.tolist() == [0, 0]
    twin = RecurrentGemmaCache(model.config, static=True)
    twin.use_buffers({**cache.buffers()})
    assert twin.columns == 0 and addresses(twin) == addresses(cache)
    read(model, ids, twin, [2])
    assert twin.columns == 5 and cache.next_position.tolist() == [5, 5]
    assert torch.equal(cache.last_ids[:, -5:], ids) and all(twin.buffers()[n] is t for n, t in cache.buffers().items())


# When buffers are made does not depend on the model: either way with each config and with each dtype.
@every_config
@pytest.mark.parametrize(("dtype", "early"), [(torch.float32, True), (torch.bfloat16, False)])
def test_any_split_equals_one_pass_in_the_same_buffers(name, dtype, early):
    model, length = build(name).to(dtype), 4 * WINDOW
    ids = draw_ids(2, length)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
    for cuts in ([], [1], [WINDOW], [WINDOW + 1, WINDOW + 2], [3, 4, 5, 2 * WINDOW], list(range(1, length))):
        cache = RecurrentGemmaCache(model.config, static=True, **({"batch_size": 2, "dtype": dtype} if early else {}))
        before = addresses(cache) if early else None
        pieces = read(model, ids, cache, cuts)
        assert_routes_agree(pieces, whole, model.config.num_hidden_layers, f"{name} cut at {cuts[:4]}")
        assert cache.columns == length and cache.next_position.tolist() == [length] * 2
        assert before is None or addresses(cache) == before
        before = addresses(cache)
        cache.reset()
        again = read(model, ids, cache, cuts)
        assert_routes_agree(again, whole, model.config.num_hidden_layers, "after reset")
        assert addresses(cache) == before


@every_config
def test_padded_rows_and_new_documents_equal_the_default_form(name):
    model, columns = build(name), 3 * WINDOW
    ids, mask = draw_ids(3, columns), torch.ones(3, columns, dtype=torch.long)
    mask[0, :5], mask[1, -4:], mask[2, [3, 9, 10, 17]] = 0, 0, 0
    for cuts in ([WINDOW], list(range(1, columns))):
        forms = [RecurrentGemmaCache(model.config, static=static) for static in (False, True)]
        default, static = (read(model, ids, cache, cuts, mask) for cache in forms)
        assert_close(static[mask.bool()], default[mask.bool()], SPLIT_EQUALS_WHOLE_LOGITS, f"cut at {cuts[:3]}")
        assert torch.equal(*(cache.next_position for cache in forms))
    # The mask of the new columns alone says the same, and keeps its shape from token to token.
    whole, short = (RecurrentGemmaCache(model.config, static=True) for _ in range(2))
    with torch.no_grad():
        for end in range(1, columns + 1):
            last = slice(end - 1, end)
            expected = model(ids[:, last], attention_mask=mask[:, :end], past_key_values=whole).logits
            assert torch.equal(
                model(ids[:, last], attention_mask=mask[:, last], past_key_values=short).logits, expected
            )
    positions = torch.cat([torch.arange(n) for n in (4, 1, 11, 5)])[None].expand(3, -1)
    forms = [RecurrentGemmaCache(model.config, static=static) for static in (False, True)]
    with torch.no_grad():
        default, static = (
            torch.cat([model(ids[:, t : t + 1], position_ids=positions[:, t : t + 1], past_key_values=cache).logits
                       for t in range(columns)], dim=1)
            for cache in forms
        )  # fmt: skip
    assert_close(static, default, SPLIT_EQUALS_WHOLE_LOGITS, "new documents")


@pytest.mark.parametrize("name", ["shipped pattern", "all recurrent", "all attention"])
@torch.no_grad()
def test_prefill_and_decoding_compile_once_each_without_graph_breaks(name):
    model, ids = build(name), draw_ids(2, 5 * WINDOW)
    expected = model(ids, use_cache=False).logits
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=False)
    cache = RecurrentGemmaCache(model.config, static=True, batch_size=2)
    before = addresses(cache)
    for count in (2, 2):
        pieces = [compiled(ids[:, :10], past_key_values=cache).logits]
        pieces += [compiled(ids[:, t : t + 1], past_key_values=cache).logits for t in range(10, ids.shape[1])]
        assert_close(torch.cat(pieces, dim=1), expected, SPLIT_EQUALS_WHOLE_LOGITS, "compiled")
        assert counter.frame_count == count and addresses(cache) == before
        cache.reset()


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache,
        lambda cache: cache.clone(),
        lambda cache: cache.batch_repeat_interleave(2) or cache,
        lambda cache: cache.batch_select_indices(torch.tensor([1])) or cache,
        lambda cache: RecurrentGemmaCache.from_tensors(TWO_BLOCKS, cache.tensors(), cache.columns, static=True),
    ],
    ids="none clone repeat select from_tensors".split(),
)
@torch.no_grad()
def test_a_compiled_step_changes_only_tensors_whose_address_is_known_to_stay(change):
    """The rule under which torch makes a CUDA graph of what changes its inputs; with one exception it makes none."""
    model = tiny_model(TWO_BLOCKS)
    cache = RecurrentGemmaCache(TWO_BLOCKS, static=True, batch_size=2)
    model(draw_ids(2, 9), past_key_values=cache)
    cache = change(cache)
    seen = []

    def compiler(graph, example_inputs):
        metadata = TracingContext.get().fw_metadata
        seen.append((set(metadata.mutated_inp_runtime_indices), set(metadata.static_input_indices)))
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    step = torch.compile(model, fullgraph=True, backend=aot_autograd(fw_compiler=compiler))
    step(draw_ids(cache.batch_size, 1), past_key_values=cache)
    # Each layer's state, and three counters.
    changed = sum(len(layer.load()) for layer in cache.layers) + 3
    assert [len(mutated) for mutated, _ in seen] == [changed]
    assert all(mutated <= static for mutated, static in seen)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of torch's compiler about torch itself
@pytest.mark.skipif(shutil.which("g++") is None, reason="the default backend needs a C++ compiler")
@pytest.mark.parametrize("rows", [1, 2])
@torch.no_grad()
def test_the_default_backend_gives_the_same(rows):
    model, ids = build(), draw_ids(rows, 3 * WINDOW)
    expected = model(ids, use_cache=False).logits
    torch._dynamo.reset()
    cache = RecurrentGemmaCache(model.config, static=True, batch_size=rows)
    compiled = torch.compile(model, fullgraph=True)
    pieces = [compiled(ids[:, :8], past_key_values=cache).logits]
    pieces += [compiled(ids[:, t : t + 1], past_key_values=cache).logits for t in range(8, ids.shape[1])]
    assert_close(torch.cat(pieces, dim=1), expected, SPLIT_EQUALS_WHOLE_LOGITS, "inductor")


@torch.no_grad()
def test_a_compiled_step_takes_masks_and_positions_of_the_new_columns():
    model, ids, mask = build(), draw_ids(2, 30), torch.ones(2, 30, dtype=torch.long)
    mask[0, :6] = 0
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    expected = model(ids, attention_mask=mask, use_cache=False).logits
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=False)
    cache, pieces = RecurrentGemmaCache(model.config, static=True, batch_size=2), []
    for t in range(30):
        new = slice(t, t + 1)
        options = {"attention_mask": mask[:, new], "position_ids": positions[:, new], "past_key_values": cache}
        pieces.append(compiled(ids[:, new], **options).logits)
    assert_close(torch.cat(pieces, 1)[mask.bool()], expected[mask.bool()], SPLIT_EQUALS_WHOLE_LOGITS, "compiled")
    assert counter.frame_count == 1


@pytest.mark.parametrize("rows", [1, 2])
def test_generate_compiles_the_static_form_once(rows):
    model, ids = build(), draw_ids(rows, 9)
    options = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 3 * WINDOW}
    expected = model.generate(ids, **options)
    torch._dynamo.reset()
    counters.clear()
    config = CompileConfig(backend="aot_eager", fullgraph=True, mode=None, dynamic=False)
    static = model.generate(ids, cache_implementation="static", compile_config=config, **options)
    assert torch.equal(static, expected)
    assert counters["stats"]["unique_graphs"] == 1
    assert config == CompileConfig(backend="aot_eager", fullgraph=True, mode=None, dynamic=False)
    counters.clear()
    for others in ({"disable_compile": True, "compile_config": config}, {}):
        eager = model.generate(ids, cache_implementation="static", **others, **options)
        assert torch.equal(eager, expected) and not counters["stats"]["unique_graphs"]


def test_generate_compiles_the_static_form_with_every_output():
    model, ids = build(), draw_ids(2, 9)
    options = {"do_sample": False, "eos_token_id": None, "max_new_tokens": WINDOW, "return_dict_in_generate": True}
    options |= {"output_logits": True, "output_scores": True, "output_hidden_states": True}
    eager = model.generate(ids, cache_implementation="static", **options)
    config = CompileConfig(backend="aot_eager", fullgraph=True, mode=None, dynamic=False)
    compiled = model.generate(ids, cache_implementation="static", compile_config=config, **options)
    assert torch.equal(compiled.sequences, eager.sequences)
    for actual, expected in zip(compiled.logits, eager.logits, strict=True):
        assert_close(actual, expected, SPLIT_EQUALS_WHOLE_LOGITS, "logits")
    for actual, expected in zip(compiled.hidden_states[-1], eager.hidden_states[-1], strict=True):
        assert_close(actual, expected, SPLIT_EQUALS_WHOLE_LOGITS, "hidden states")


@every_config
def test_batch_operations_equal_those_of_the_default_form(name):
    model, ids, more = build(name), draw_ids(3, 12), draw_ids(6, 3)
    forms = [RecurrentGemmaCache(model.config, static=static) for static in (False, True)]
    for cache in forms:
        read(model, ids, cache, [])
    before = addresses(forms[1])
    for cache in forms:
        cache.reorder_cache(torch.tensor([2, 0, 0]))
    assert addresses(forms[1]) == before
    clone = forms[1].clone()
    assert_close(*(read(model, more[:3], cache, [1]) for cache in forms), SPLIT_EQUALS_WHOLE_LOGITS, "reordered")
    assert (clone.columns, forms[1].columns) == (12, 15) and clone.static
    for cache in forms:
        cache.batch_repeat_interleave(2)
    assert_close(*(read(model, more, cache, [1]) for cache in forms), SPLIT_EQUALS_WHOLE_LOGITS, "repeated")
    for cache in forms:
        cache.batch_select_indices(torch.tensor([4, 1]))
    assert_close(*(read(model, more[:2], cache, [1]) for cache in forms), SPLIT_EQUALS_WHOLE_LOGITS, "selected")
    assert [cache.batch_size for cache in forms] == [2, 2]


def test_what_it_is_and_what_it_refuses():
    model = build()
    cache = RecurrentGemmaCache(model.config, static=True, batch_size=2)
    assert cache.is_compileable and not cache.is_croppable and cache.columns == 0 and cache.batch_size == 2
    assert isinstance(cache.layers[2].load(), RingState) and cache.layers[2].keys.shape == (2, 1, WINDOW + 1, 8)
    with pytest.raises(NotImplementedError, match="static form overwrites its past"):
        cache.activate_past_recording()
    with pytest.raises(ValueError, match="as many rows as the inputs have"):
        model(draw_ids(3, 4), past_key_values=cache)
    with pytest.raises(ValueError, match=r"torch\.no_grad"):
        model(draw_ids(2, 4), past_key_values=cache)
    with torch.no_grad():
        model(draw_ids(2, 4), past_key_values=cache)
        with pytest.raises(ValueError, match=r"attention_mask: expected shape .* = \(2, 7\)"):
            model(draw_ids(2, 3), attention_mask=torch.ones(2, 6), past_key_values=cache)
        with pytest.raises(ValueError, match="cu_seq_lens_q, seq_idx: expected None"):
            model(draw_ids(2, 3), seq_idx=torch.zeros(2, 3, dtype=torch.int), past_key_values=cache)
    with pytest.raises(ValueError, match="early_initialization: expected the static form"):
        RecurrentGemmaCache(model.config, batch_size=2)
    model.set_attn_implementation("eager")
    with torch.no_grad(), pytest.raises(ValueError, match="output_attentions: expected the default form"):
        model(draw_ids(2, 3), past_key_values=cache, output_attentions=True)


@torch.no_grad()
def test_a_failing_pass_leaves_it_as_it_was(monkeypatch):
    model, ids = build(), draw_ids(1, 20)
    cache = RecurrentGemmaCache(model.config, static=True)
    read(model, ids[:, :12], cache, [11])
    expected = read(model, ids[:, 12:], cache.clone(), [1, 2])
    with monkeypatch.context() as patch:
        patch.setattr(model.model.layers[-1], "forward", lambda *_: 1 / 0)
        for length in (1, 3):
            with pytest.raises(ZeroDivisionError):
                model(draw_ids(1, length), past_key_values=cache)
    assert cache.columns == 12
    assert_close(read(model, ids[:, 12:], cache, [1, 2]), expected, 0.0, "after the failure")
