"""Linear cross entropy: in chunks against all logits at once, with every gradient, and never all logits at once."""

import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recurrent_gemma.modeling.ops import linear_cross_entropy
from recurrent_gemma.modeling.ops.cross_entropy import chunked
from recurrent_gemma.modeling.ops.cross_entropy.chunked import linear_cross_entropy_forward
from tests.tolerances import assert_close_by_max, backward_tolerance, forward_tolerance

WORDS, WIDTH, CHUNK = 37, 8, 5
# Around a chunk's length, one token, primes.
LENGTHS = (1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 23)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(chunked, "_LEAST_TOKENS", CHUNK)
    monkeypatch.setattr(chunked, "_CPU_ELEMENTS", CHUNK * WORDS)
    monkeypatch.setattr(chunked, "_WORDS", 10)


def draw(tokens, dtype=torch.float32, *, ignored=0.0):
    hidden = torch.randn(tokens, WIDTH, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(WORDS, WIDTH, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.randint(0, WORDS, (tokens,)).masked_fill(torch.rand(tokens) < ignored, -100)
    return hidden, weight, labels


def loss_and_gradients(hidden, weight, labels, **options):
    hidden.grad = weight.grad = None
    loss = linear_cross_entropy(hidden, weight, labels, **options)
    (loss / 3).backward()
    return loss, hidden.grad, weight.grad


@pytest.mark.parametrize(("soft_cap", "ignored"), list(itertools.product((None, 0.5, 30.0), (0.0, 0.5, 1.0))))
@pytest.mark.parametrize("tokens", LENGTHS)
def test_chunks_equal_all_logits_at_once(tokens, soft_cap, ignored):
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        arguments = draw(tokens, dtype, ignored=ignored)
        actual = loss_and_gradients(*arguments, soft_cap=soft_cap)
        expected = loss_and_gradients(*arguments, soft_cap=soft_cap, impl="reference")
        # The loss adds up in the compute dtype; both routes round their logits alike.
        assert_close_by_max(actual[0], expected[0], forward_tolerance(actual[0].dtype, WORDS * tokens), f"{dtype}")
        for name, a, e in zip(("hidden", "weight"), actual[1:], expected[1:], strict=True):
            assert a.dtype == e.dtype == dtype
            assert_close_by_max(a, e, backward_tolerance(dtype, WORDS + tokens), f"{name} {dtype}")


def test_chunks_of_their_own_size_equal_all_logits_at_once(monkeypatch):
    monkeypatch.undo()
    arguments = draw(chunked.MOST_TOKENS + 7, torch.bfloat16)
    actual, expected = (loss_and_gradients(*arguments, impl=impl) for impl in (None, "reference"))
    for a, e in zip(actual, expected, strict=True):
        assert_close_by_max(a, e, backward_tolerance(torch.bfloat16, WORDS + len(arguments[0])), str(a.shape))


def test_loss_is_that_of_the_definition_in_plain_numbers():
    hidden, weight, labels = draw(4, torch.float64)
    total = 0.0
    for row, label in zip(hidden.tolist(), labels.tolist(), strict=True):
        logits = [2 * math.tanh(sum(map(math.prod, zip(row, w, strict=True))) / 2) for w in weight.tolist()]
        total += math.log(sum(map(math.exp, logits))) - logits[label]
    assert linear_cross_entropy(hidden, weight, labels, soft_cap=2.0).item() == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_gradients_are_kept_in_a_dtype_that_holds_them(dtype):
    hidden, weight, labels = draw(11, dtype)
    loss, *gradients = linear_cross_entropy_forward(hidden.detach(), weight.detach(), labels, 2.0, -100, True, True)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    # Sums of many tokens are beyond float16.
    assert {t.dtype for t in gradients} == {torch.float32 if dtype == torch.float16 else dtype}


def test_gradients_agree_with_finite_differences():
    hidden, weight, labels = draw(7, torch.float64, ignored=0.3)
    for soft_cap in (None, 2.0):
        assert torch.autograd.gradcheck(
            lambda h, w, cap=soft_cap: linear_cross_entropy(h, w, labels, soft_cap=cap), (hidden, weight)
        )


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_only_the_gradients_that_are_wanted_are_made(wanted):
    hidden, weight, labels = draw(11)
    _, *expected = loss_and_gradients(hidden, weight, labels, soft_cap=2.0)
    tensors = [t.detach().requires_grad_(w) for t, w in zip((hidden, weight), wanted, strict=True)]
    loss = linear_cross_entropy(*tensors, labels, soft_cap=2.0)
    assert loss.requires_grad == any(wanted)
    if any(wanted):
        (loss / 3).backward()
    for tensor, gradient, is_wanted in zip(tensors, expected, wanted, strict=True):
        assert (tensor.grad is not None) == is_wanted
        if is_wanted:
            assert torch.equal(tensor.grad, gradient)


def test_nothing_is_changed_and_strided_tensors_do():
    hidden, weight, labels = draw(11, ignored=0.3)
    before = [t.detach().clone() for t in (hidden, weight, labels)]
    expected = loss_and_gradients(hidden, weight, labels)
    strided = [t.detach().T.contiguous().T.requires_grad_() for t in (hidden, weight)]
    actual = loss_and_gradients(*strided, labels.repeat_interleave(2)[::2])
    for a, e in zip(actual, expected, strict=True):
        assert_close_by_max(a, e, backward_tolerance(torch.float32, WORDS), "strided")
    assert all(torch.equal(t, b) for t, b in zip((hidden, weight, labels), before, strict=True))


def test_autocast_multiplies_in_its_dtype_and_adds_up_in_fp32():
    hidden, weight, labels = draw(11)
    with torch.autocast("cpu", torch.bfloat16):
        actual = loss_and_gradients(hidden, weight, labels, soft_cap=2.0)
        expected = loss_and_gradients(hidden, weight, labels, soft_cap=2.0, impl="reference")
    assert actual[0].dtype == torch.float32 and actual[2].dtype == torch.float32
    rounded = [t.detach().bfloat16().requires_grad_() for t in (hidden, weight)]
    assert torch.equal(actual[0], linear_cross_entropy(*rounded, labels, soft_cap=2.0))
    for a, e in zip(actual, expected, strict=True):
        assert_close_by_max(a, e, backward_tolerance(torch.bfloat16, WORDS), "autocast")


def test_sums_that_float16_cannot_hold():
    # The gradient of the sum over tokens is 90,000, float16 ends at 65,504; that of the mean is 11.
    tokens = 8192
    hidden = torch.full((tokens, WIDTH), 12.0).half()
    weight = (0.01 * torch.randn(WORDS, WIDTH)).half().requires_grad_()
    labels = torch.zeros(tokens).long()
    total = linear_cross_entropy(hidden, weight, labels)
    (gradient,) = torch.autograd.grad(total / tokens, weight)
    exact = weight.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(linear_cross_entropy(hidden.double(), exact, labels) / tokens, exact)
    assert expected.abs().max() * tokens > torch.finfo(torch.float16).max
    assert_close_by_max(gradient, expected, backward_tolerance(torch.float16, WORDS), "weight")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1500, 6001])
def test_the_factor_of_all_gradients_is_not_rounded(tokens, dtype):
    # 1/N has no short binary fraction; in bfloat16 it is off by 0.2 %, and every gradient of a model with it.
    hidden, weight, labels = draw(tokens, dtype)
    (linear_cross_entropy(hidden, weight, labels) / tokens).backward()
    exact = hidden.detach().double().requires_grad_()
    (linear_cross_entropy(exact, weight.detach().double(), labels) / tokens).backward()
    actual, expected = hidden.grad.double(), exact.grad
    # The factor common to all entries, by least squares: roundings of single ones cancel.
    factor = ((actual * expected).sum() / expected.square().sum()).item()
    assert abs(factor - 1) < 5e-4


def test_is_a_well_formed_op():
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        hidden, weight, labels = draw(11, dtype, ignored=0.3)
        arguments = (hidden, weight, labels, 2.0, -100, True, True)
        torch.library.opcheck(torch.ops.recurrent_gemma.linear_cross_entropy, arguments)
    compiled = torch.compile(
        lambda h, w: linear_cross_entropy(h, w, labels, soft_cap=2.0), backend="aot_eager", fullgraph=True
    )
    expected = loss_and_gradients(hidden, weight, labels, soft_cap=2.0)
    hidden.grad = weight.grad = None
    (compiled(hidden, weight) / 3).backward()
    assert torch.equal(hidden.grad, expected[1]) and torch.equal(weight.grad, expected[2])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own, inside jvp
def test_forward_mode_and_second_derivatives_raise():
    hidden, weight, labels = draw(4)
    with pytest.raises(NotImplementedError, match="linear_cross_entropy: forward-mode"):
        torch.func.jvp(
            lambda h: linear_cross_entropy(h, weight, labels), (hidden.detach(),), (torch.ones_like(hidden),)
        )
    (gradient,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, labels), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        torch.autograd.grad(gradient.sum(), weight)


def test_the_logits_of_all_tokens_are_never_held():
    class Largest(TorchDispatchMode):
        words = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, torch.Tensor) and tensor.shape[1:] == (WORDS,) and tensor.shape[0] != WIDTH:
                    self.words = max(self.words, tensor.numel())
            return out

    hidden, weight, labels = draw(20 * CHUNK)
    with Largest() as largest:
        linear_cross_entropy_forward(hidden.detach(), weight.detach(), labels, 2.0, -100, True, True)
    assert largest.words == CHUNK * WORDS
    with Largest() as largest:
        linear_cross_entropy(hidden, weight, labels, impl="reference")
    assert largest.words == 20 * CHUNK * WORDS


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hidden": torch.zeros(3, 8, dtype=torch.long)}, TypeError, "hidden: expected a floating-point tensor"),
        ({"hidden": torch.zeros(0, 8)}, ValueError, "hidden: expected a non-empty"),
        ({"hidden": torch.zeros(1, 3, 8)}, ValueError, "hidden: expected a non-empty"),
        ({"weight": torch.zeros(5, 7)}, ValueError, r"weight: expected shape \(V, D\) = \(5, 8\), got \(5, 7\)"),
        ({"weight": torch.zeros(5, 8).half()}, ValueError, "weight: expected hidden's dtype"),
        ({"labels": torch.zeros(2).long()}, ValueError, r"labels: expected shape \(N,\) = \(3,\), got \(2,\)"),
        ({"labels": torch.zeros(3)}, TypeError, "labels: expected an int64 tensor"),
        ({"soft_cap": 0.0}, ValueError, "soft_cap: expected a number above 0, or None"),
        ({"impl": "other"}, ValueError, "impl: expected one of"),
    ],
)
def test_wrong_arguments_are_named(changes, error, message):
    arguments = {"hidden": torch.zeros(3, 8), "weight": torch.zeros(5, 8), "labels": torch.zeros(3).long(), **changes}
    with pytest.raises(error, match=message):
        linear_cross_entropy(arguments.pop("hidden"), arguments.pop("weight"), arguments.pop("labels"), **arguments)
