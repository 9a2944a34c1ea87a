"""Products with a layer's weights: every route against torch's own, and which one is taken where."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from recurrent_gemma.modeling.ops import block_diagonal_linear, linear
from recurrent_gemma.modeling.ops.linear import api, widened
from tests.modeling.models import tiny_config, tiny_model
from tests.tolerances import assert_close_by_max, forward_tolerance


@pytest.fixture
def threads():
    """Two threads whatever the machine or the test run sets."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


@pytest.fixture
def slow_halves(monkeypatch):
    """A CPU without instructions for half precision."""
    monkeypatch.setattr(api, "_is_slow_on_cpu", lambda dtype: dtype in (torch.bfloat16, torch.float16))


def draw(*shapes, dtype=torch.float32):
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


def expected_of(x, weight, bias):
    """The product in fp64, rounded once."""
    return F.linear(x.double(), weight.double(), None if bias is None else bias.double()).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("impl", ["torch", "blocked", "reduced", "widened"])
def test_every_route_gives_the_product(impl, dtype, threads, monkeypatch):
    # Blocks of 3 rows of the weight: whole ones and a part of one.
    monkeypatch.setattr(widened, "_BLOCK_ELEMENTS", 3 * 7)
    shapes = [(7,), (1, 7), (1, 1, 7)]
    if impl in ("torch", "widened"):
        shapes += [(2, 7), (2, 3, 7)]
    for shape, with_bias in itertools.product(shapes, (False, True)):
        x, weight, bias = draw(shape, (10, 7), (10,), dtype=dtype)
        bias = bias if with_bias else None
        y = linear(x, weight, bias, impl=impl)
        assert y.dtype == dtype and y.shape == (*shape[:-1], 10)
        assert_close_by_max(y, expected_of(x, weight, bias), 2 * forward_tolerance(dtype, 7), f"{impl} {shape}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("impl", ["torch", "reduced", "widened"])
def test_every_route_gives_the_block_diagonal_product(impl, dtype):
    for shape in [(1, 1, 12)] if impl == "reduced" else [(1, 1, 12), (12,), (2, 5, 12)]:
        x, weight, bias = draw(shape, (3, 4, 4), (3, 4), dtype=dtype)
        y = block_diagonal_linear(x, weight, bias, impl=impl)
        assert y.dtype == dtype and y.shape == shape
        dense = torch.block_diag(*weight.double()).T
        assert_close_by_max(y, expected_of(x, dense, bias.flatten()), 2 * forward_tolerance(dtype, 4), impl)


def test_weights_need_not_be_contiguous(threads):
    x, weight, bias = draw((1, 6), (6, 8), (8,))
    for impl in ("blocked", "reduced", "widened"):
        y = linear(x, weight.t(), bias, impl=impl)
        assert_close_by_max(y, expected_of(x, weight.t(), bias), forward_tolerance(torch.float32, 6), impl)


def test_default_route_by_shape_dtype_and_mode(threads, slow_halves, monkeypatch):
    monkeypatch.setattr(api, "_BLOCKED_ELEMENTS", 60)

    def route(rows, width_out=10, *, dtype=torch.float32, weight_dtype=None, **options):
        x, weight = draw((rows, 6), (width_out, 6), dtype=dtype)
        return api.default_backend(x, weight.to(weight_dtype or dtype), **options)

    assert route(1) == "torch"  # gradients are recorded
    with torch.no_grad():
        assert route(1) == "blocked"
        assert route(1, batched=True) == route(1, width_out=9) == route(1, width_out=11) == route(2) == "torch"
        assert route(1, dtype=torch.float64) == "torch"
        for dtype in (torch.bfloat16, torch.float16):
            assert route(15, dtype=dtype) == "torch" and route(16, dtype=dtype) == "widened"
            assert route(1, dtype=dtype, batched=True) == "widened"
        assert route(16, dtype=torch.bfloat16, weight_dtype=torch.float32) == "torch"
        torch.set_num_threads(1)
        assert route(1) == "torch"


def test_fast_halves_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(api, "_is_slow_on_cpu", lambda dtype: False)
    x, weight = draw((64, 6), (10, 6), dtype=torch.bfloat16)
    with torch.no_grad():
        assert api.default_backend(x, weight) == "torch"


def test_weights_of_other_classes_bring_their_own_product():
    class Quantized(torch.Tensor):
        pass

    x, weight = draw((1, 6), (10, 6))
    with torch.no_grad():
        assert api.default_backend(x, weight.as_subclass(Quantized)) == "torch"
        assert api.default_backend(x, torch.nn.Parameter(weight)) in ("torch", "blocked")


def test_compiled_rows_are_reduced_and_equal():
    x, weight, bias = draw((1, 1, 6), (10, 6), (10,))
    seen = []

    def backend(graph, _):
        seen.extend(node.target for node in graph.graph.nodes)
        return graph.forward

    compiled = torch.compile(linear, backend=backend, fullgraph=True)
    with torch.no_grad():
        y = compiled(x, weight, bias)
    assert "sum" in seen and F.linear not in seen
    assert_close_by_max(y, expected_of(x, weight, bias), forward_tolerance(torch.float32, 6), "compiled")


@pytest.mark.parametrize("shape", [(3, 6), (1, 2, 6)])
def test_compiled_calls_of_several_rows_are_torchs(shape):
    x, weight, bias = draw(shape, (10, 6), (10,))
    blocks, block_bias = draw((2, 3, 3), (2, 3))
    with torch.no_grad():
        compiled = torch.compile(linear, backend="eager", fullgraph=True)
        assert torch.equal(compiled(x, weight, bias), F.linear(x, weight, bias))
        compiled = torch.compile(block_diagonal_linear, backend="eager", fullgraph=True)
        expected = block_diagonal_linear(x, blocks, block_bias, impl="torch")
        assert torch.equal(compiled(x, blocks, block_bias), expected)


@pytest.mark.parametrize("impl", ["reduced", "widened"])
def test_half_precision_is_rounded_once(impl):
    """1.0078125 squared less 1.015625 is 2**-14, of which nothing is left if the products are rounded."""
    x = torch.tensor([[1 + 2**-7, 1.0]], dtype=torch.bfloat16)
    weight = torch.tensor([[1 + 2**-7, -1 - 2**-6]], dtype=torch.bfloat16)
    assert linear(x, weight, impl=impl).item() == 2**-14
    square, bias = weight.t().repeat(1, 2)[None], torch.zeros(1, 2, dtype=torch.bfloat16)
    assert block_diagonal_linear(x, square, bias, impl=impl).tolist() == [[2**-14] * 2]


def test_gradients_are_torchs():
    x, weight, bias = (t.requires_grad_() for t in draw((2, 6), (4, 6), (4,)))
    for actual, expected in zip(
        torch.autograd.grad(linear(x, weight, bias).square().sum(), (x, weight, bias)),
        torch.autograd.grad(F.linear(x, weight, bias).square().sum(), (x, weight, bias)),
        strict=True,
    ):
        assert torch.equal(actual, expected)


def test_what_a_route_cannot_take_is_refused(threads):
    x, weight = draw((2, 6), (10, 6))
    with pytest.raises(ValueError, match=r"impl: expected another than 'blocked', which takes a single row"):
        linear(x, weight, impl="blocked")
    with pytest.raises(ValueError, match=r"impl: expected another than 'reduced', which takes a single row"):
        linear(x, weight, impl="reduced")
    with pytest.raises(ValueError, match=r"whose 2 threads each take as many of the weight's rows"):
        linear(x[:1], weight[:9], impl="blocked")
    with pytest.raises(ValueError, match=r"impl: expected one of .* for linear, got 'fast'"):
        linear(x, weight, impl="fast")
    with pytest.raises(ValueError, match="for block_diagonal_linear, got 'blocked'"):
        block_diagonal_linear(x, weight[:6].view(1, 6, 6), weight[:1], impl="blocked")


def test_the_model_takes_these_routes(threads, slow_halves, monkeypatch):
    monkeypatch.setattr(api, "_BLOCKED_ELEMENTS", 1)
    taken = []
    monkeypatch.setattr(api, "linear_row_in_blocks", lambda *a: taken.append("blocked") or F.linear(*a))
    monkeypatch.setattr(api, "linear_widened", lambda *a: taken.append("widened") or F.linear(*a))
    model = tiny_model(tiny_config())
    with torch.no_grad():
        model(input_ids=torch.tensor([[1]]))
        assert taken and set(taken) == {"blocked"}
        taken.clear()
        model.to(torch.bfloat16)(input_ids=torch.ones(1, 16, dtype=torch.long))
        assert taken and set(taken) == {"widened"}
