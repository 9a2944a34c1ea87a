"""Local attention: blocked SDPA and FlexAttention against the dense definition, splits against wholes, documents, pads.

torch refuses a backward of FlexAttention on CPU, where it has no kernel; its dense formula for it is what the kernels
are written after, and with the refusals taken away it runs, masks and all.
"""

import itertools

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import create_block_mask

from recurrent_gemma.modeling.ops import local_attention
from recurrent_gemma.modeling.ops.local_attention import flex
from recurrent_gemma.modeling.ops.local_attention.reference import visible_keys
from tests.tolerances import assert_close_by_max, backward_tolerance, forward_tolerance

# B, H, G, L, D, W, P: shorter than, equal to and longer than the window and the blocks of queries; one token, also with
# more past than it sees.
SHAPES = (
    (1, 4, 1, 1, 8, 4, 0),
    (2, 4, 1, 1, 8, 4, 3),
    (2, 4, 2, 1, 8, 4, 4),
    (2, 4, 2, 1, 8, 4, 7),
    (2, 4, 2, 5, 8, 4, 4),
    (2, 4, 4, 9, 8, 70, 4),
    (2, 4, 1, 8, 4, 7, 0),
    (1, 4, 2, 300, 4, 299, 0),
    (1, 2, 1, 301, 4, 299, 0),
    (1, 2, 1, 300, 4, 5, 0),
    (1, 2, 1, 300, 4, 70, 70),
    (2, 2, 1, 200, 4, 130, 100),
    (1, 2, 1, 700, 4, 100, 33),
)


def draw(batch, heads, groups, length, width, past, dtype=torch.float64, *, grad=False):
    """query, key, value, past_key, past_value; the past only where there is one."""
    shapes = [(batch, heads, length, width)] + [(batch, groups, length, width)] * 2
    shapes += [(batch, groups, past, width)] * 2 if past else []
    return [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_(grad) for shape in shapes]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_blocked_equals_reference_with_every_gradient(shape):
    batch, heads, groups, length, width, window, past = shape
    for starts, valid, ragged in itertools.product((False, True), repeat=3):
        inputs = draw(batch, heads, groups, length, width, past, grad=True)
        options = {
            "window": window,
            "starts": torch.rand(batch, length) < 0.1 if starts else None,
            "valid": torch.rand(batch, length) < 0.7 if valid else None,
            "past_length": torch.randint(0, past + 1, (batch,)) if ragged and past else None,
        }
        weight = torch.randn(batch, heads, length, width, dtype=torch.float64)
        results = {}
        for impl in ("reference", "blocked"):
            output, *state = local_attention(*inputs, impl=impl, **options)
            results[impl] = [output, *state, *torch.autograd.grad((output * weight).sum(), inputs)]
        for actual, expected in zip(results["blocked"], results["reference"], strict=True):
            assert_close_by_max(actual, expected, backward_tolerance(torch.float64, length), str(options)[:60])


@pytest.fixture
def flex_backward_on_cpu(monkeypatch):
    monkeypatch.setattr(flex, "_expect_backward", lambda *_: None)
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)


@pytest.mark.usefixtures("flex_backward_on_cpu")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # read by torch's compiler itself
@pytest.mark.parametrize(("groups", "dtype"), [(1, torch.float32), (2, torch.float32), (2, torch.bfloat16)])
def test_flex_equals_reference_with_every_gradient(groups, dtype):
    batch, heads, width, window = 4, 6, 8, 70
    for past, length in itertools.product((0, 40), (1, window, window + 1, 2 * window + 127)):
        inputs = draw(batch, heads, groups, length, width, past, dtype, grad=True)
        twins = [t.detach().double().requires_grad_() for t in inputs]
        for starts, valid, ragged in ((0, 0, 0), (1, 0, 1), (1, 1, 1)):
            options = {
                "window": window,
                "starts": torch.rand(batch, length) < 0.02 if starts else None,
                "valid": torch.rand(batch, length) < 0.7 if valid else None,
                "past_length": torch.randint(0, past + 1, (batch,)) if ragged and past else None,
            }
            weight = torch.randn(batch, heads, length, width, dtype=torch.float64)
            results = []
            for impl, tensors in (("flex", inputs), ("reference", twins)):
                output, *state = local_attention(*tensors, impl=impl, **options)
                gradients = torch.autograd.grad((output * weight.to(output.dtype)).sum(), tensors)
                results.append([output, *state, *gradients])
            assert results[0][0].dtype == dtype
            for actual, expected in zip(*results, strict=True):
                assert_close_by_max(actual, expected, backward_tolerance(dtype, length), f"{past}, {length}, {options}")


@pytest.mark.parametrize("past", [0, 40, 300])
@pytest.mark.parametrize("window", [1, 70, 128, 257])
def test_flex_visits_the_blocks_that_some_query_sees_and_masks_those_that_not_every_query_sees(window, past):
    batch, length = 2, 640
    cases = itertools.product((None, torch.tensor([0, past // 2])), (0.0, 0.01))
    for past_length, share in cases:
        documents = (torch.rand(batch, length) < share).cumsum(dim=1) if share else None
        bounds = flex.key_bounds(batch, length, past, window, past_length, documents, torch.device("cpu"))
        keys = -(-(past + length) // 128) * 128
        actual = flex.block_mask_of_bounds(*bounds, keys)
        starts = None if documents is None else documents.diff(dim=1, prepend=torch.zeros(batch, 1)) > 0
        visible = visible_keys(window, batch, length, past, past_length, starts, None, torch.device("cpu"))
        visible = torch.nn.functional.pad(visible, (0, keys - past - length))
        rows, columns = torch.arange(length)[:, None], torch.arange(keys)[None, :]
        for row in range(batch):
            assert torch.equal(actual.mask_mod(torch.tensor(row), torch.tensor(0), rows, columns), visible[row])
        expected = create_block_mask(lambda b, h, q, k, seen=visible: seen[b, q, k], batch, 1, length, keys, "cpu")
        for name in ("kv", "full_kv", "q", "full_q"):
            assert listed_blocks(actual, name) == listed_blocks(expected, name)


def listed_blocks(mask, name):
    """The blocks that each row of blocks lists; their order is nobody's concern."""
    counts, indices = getattr(mask, f"{name}_num_blocks"), getattr(mask, f"{name}_indices")
    pairs = zip(counts.flatten().tolist(), indices.flatten(0, -2).tolist(), strict=True)
    return [sorted(row[:count]) for count, row in pairs]


def test_flex_visits_blocks_linear_in_length_and_compiles_once_for_all_lengths():
    counts = []
    for length in (1024, 2048, 4096):
        bounds = flex.key_bounds(1, length, 0, 256, None, None, torch.device("cpu"))
        mask = flex.block_mask_of_bounds(*bounds, length)
        counts.append(int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum()))
    assert counts[2] - counts[1] == 2 * (counts[1] - counts[0]) and counts[2] <= 4096 // 128 * 3
    counters.clear()
    for length in (2, 300, 301, 384, 700):
        local_attention(*draw(3, 4, 1, length, 4, 0, torch.float32), window=100, impl="flex")
    assert counters["stats"]["unique_graphs"] == 1


def test_flex_within_a_compiled_function_gives_the_same():
    inputs, starts = draw(3, 4, 2, 150, 8, 40), torch.rand(3, 150) < 0.05
    expected = local_attention(*inputs, window=60, starts=starts, impl="reference")
    compiled = torch.compile(local_attention, fullgraph=True, backend="aot_eager")
    for actual, wanted in zip(compiled(*inputs, window=60, starts=starts, impl="flex"), expected, strict=True):
        assert_close_by_max(actual, wanted, forward_tolerance(torch.float64, 61), "compiled")


def test_flex_refuses_what_it_cannot_do():
    inputs = draw(2, 4, 1, 9, 8, 3, grad=True)
    cases = (
        ({"dropout": 0.1}, 'dropout: expected 0 with impl="flex".*impl="blocked"'),
        ({"return_weights": True}, 'return_weights: expected impl="reference".*got impl="flex"'),
        ({}, 'expected tensors without requires_grad on CPU.*impl="blocked"'),
    )
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            local_attention(*inputs, window=4, impl="flex", **options)
    with torch.no_grad():
        actual, expected = (local_attention(*inputs, window=4, impl=impl)[0] for impl in ("flex", "reference"))
    assert_close_by_max(actual, expected, forward_tolerance(torch.float64, 5), "without gradients")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_stays_within_its_rounding(dtype):
    inputs = draw(2, 4, 1, 150, 16, 0, dtype)
    output, *_ = local_attention(*inputs, window=40)
    expected, *_ = local_attention(*(t.double() for t in inputs), window=40, impl="reference")
    # The weights are rounded to the dtype before the second product, hence one more rounding than the output's own.
    assert_close_by_max(output, expected, 2 * forward_tolerance(dtype, 41), str(dtype))


def test_a_query_sees_itself_and_window_keys_before_it():
    mask = visible_keys(3, 1, 8, 0, None, None, None, torch.device("cpu"))[0]
    assert mask.sum(dim=1).tolist() == [1, 2, 3, 4, 4, 4, 4, 4]
    query, key, value = (
        torch.zeros(1, 1, 8, 2),
        torch.zeros(1, 1, 8, 2),
        torch.arange(8.0).view(1, 1, 8, 1).expand(-1, -1, -1, 2),
    )
    for impl in ("reference", "blocked", "flex"):
        output, *_ = local_attention(query, key, value, window=3, impl=impl)
        assert output[0, 0, :, 0].tolist() == pytest.approx([0, 0.5, 1, 1.5, 2.5, 3.5, 4.5, 5.5])


@pytest.mark.parametrize("impl", ["reference", "blocked", "flex"])
@pytest.mark.parametrize("window", [3, 17, 100])
def test_any_split_equals_the_whole(impl, window):
    batch, length = 3, 60
    query, key, value = draw(batch, 4, 2, length, 8, 0)
    starts, valid = torch.rand(batch, length) < 0.05, torch.rand(batch, length) < 0.7
    options = {"window": window, "impl": impl}
    whole, *_ = local_attention(query, key, value, starts=starts, valid=valid, **options)
    for cuts in ((0, 1, 60), (0, min(window, 59), 60), (0, 20, 21, 59, 60), tuple(range(61))):
        past, seen, parts = (None, None), torch.zeros(batch, dtype=torch.long), []
        for begin, end in itertools.pairwise(cuts):
            span = slice(begin, end)
            part, *past = local_attention(
                *(t[:, :, span] for t in (query, key, value)),
                *past,
                past_length=seen,
                starts=starts[:, span],
                valid=valid[:, span],
                **options,
            )
            parts.append(part)
            for column in range(begin, end):
                started = starts[:, column] & valid[:, column]
                seen = torch.where(started, 0, seen) + valid[:, column].long()
        assert past[0].shape[2] == min(window, length)
        assert_close_by_max(torch.cat(parts, 2), whole, forward_tolerance(torch.float64, window), str(cuts[:4]))


def test_packed_documents_equal_separate_ones_and_pads_their_absence():
    query, key, value = draw(1, 4, 1, 90, 8, 0)
    starts = torch.zeros(1, 90, dtype=torch.bool)
    starts[0, [0, 1, 30, 41]] = True
    packed, *_ = local_attention(query, key, value, window=20, starts=starts)
    for begin, end in itertools.pairwise((0, 1, 30, 41, 90)):
        alone, *_ = local_attention(*(t[:, :, begin:end] for t in (query, key, value)), window=20)
        assert_close_by_max(packed[:, :, begin:end], alone, forward_tolerance(torch.float64, 21), f"at {begin}")
    valid = torch.rand(1, 90) < 0.6
    padded, *state = local_attention(query, key, value, window=20, valid=valid)
    bare, *bare_state = local_attention(*(t[:, :, valid[0]] for t in (query, key, value)), window=20)
    assert_close_by_max(padded[:, :, valid[0]], bare, forward_tolerance(torch.float64, 21), "valid tokens")
    assert all(torch.equal(a, b) for a, b in zip(state, bare_state, strict=True))
    assert not padded[:, :, ~valid[0]].any()


@pytest.mark.parametrize("past", [0, 2])
@pytest.mark.parametrize("length", [1, 4])
def test_a_document_may_start_at_any_column(past, length):
    inputs = draw(2, 4, 2, length, 4, past)
    for column in range(length):
        starts = torch.zeros(2, length, dtype=torch.bool)
        starts[1, column] = True
        for impl in ("blocked", "flex"):
            actual, expected = (
                local_attention(*inputs, window=3, starts=starts, impl=each)[0] for each in (impl, "reference")
            )
            assert_close_by_max(actual, expected, forward_tolerance(torch.float64, 6), f"{impl}, {column}")


def test_memory_and_work_are_linear_in_length(monkeypatch):
    """Counts the score entries that SDPA is asked for: at most four windows for each query."""
    asked = []
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def counting(query, key, value, **options):
        asked.append(query.shape[2] * key.shape[2])
        return sdpa(query, key, value, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counting)
    counts = []
    for length in (1000, 2000, 4000):
        asked.clear()
        local_attention(*draw(1, 1, 1, length, 2, 0), window=256)
        counts.append(sum(asked))
        assert max(asked) <= 257 * 512
    assert counts[2] <= 4.2 * counts[0]
    assert counts[2] <= 4000 * 2 * 256


def test_weights_come_from_the_reference_only_and_sum_to_one():
    inputs = draw(2, 4, 2, 9, 8, 5)
    valid = torch.rand(2, 9) < 0.7
    output, _, _, weights = local_attention(*inputs, window=4, valid=valid, return_weights=True, impl="reference")
    assert weights.shape == (2, 4, 9, 14)
    assert_close_by_max(weights.sum(-1)[:, 0], valid.double(), forward_tolerance(torch.float64, 14), "sums")
    assert_close_by_max(
        output,
        weights @ torch.cat((inputs[4], inputs[2]), 2).repeat_interleave(2, 1),
        forward_tolerance(torch.float64, 14),
        "output",
    )
    with pytest.raises(ValueError, match="return_weights"):
        local_attention(*inputs, window=4, return_weights=True)


def test_dropout_is_random_and_keeps_the_mean():
    query, key, _ = draw(1, 1, 1, 400, 4, 0)
    value = torch.ones_like(key)
    for impl in ("reference", "blocked"):
        output, *_ = local_attention(query, key, value, window=64, dropout=0.3, impl=impl)
        assert output.std() > 0.01
        assert output.mean().item() == pytest.approx(1.0, abs=0.05)


def test_bad_arguments_name_what_is_wrong():
    query, key, value, past_key, past_value = draw(2, 4, 2, 5, 8, 3)
    good = {"query": query, "key": key, "value": value, "past_key": past_key, "past_value": past_value, "window": 4}
    cases = (
        ("query", query[:, :, :0], ValueError),
        ("query", query.long(), TypeError),
        ("key", key[:, :, :4], ValueError),
        ("key", torch.randn(2, 3, 5, 8), ValueError),
        ("value", value[..., :4], ValueError),
        ("past_key", None, ValueError),
        ("past_value", past_value[:, :, :2], ValueError),
        ("window", 0, ValueError),
        ("window", 2.0, ValueError),
        ("past_length", torch.ones(3, dtype=torch.long), ValueError),
        ("past_length", torch.ones(2), TypeError),
        ("starts", torch.zeros(2, 4, dtype=torch.bool), ValueError),
        ("valid", torch.zeros(2, 5), TypeError),
        ("dropout", 1.0, ValueError),
        ("impl", "flash", ValueError),
    )
    for name, value_, error in cases:
        with pytest.raises(error, match=name):
            local_attention(**{**good, name: value_})
