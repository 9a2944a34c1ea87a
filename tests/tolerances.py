"""The tolerances of the whole test suite, each with where it comes from, and the comparisons that use them.

Three kinds of bar:

* contracts: figures the project promises to users; they hold for any machine and any of the tested models;
* derived: from the dtype's machine epsilon and the number of rounded additions (``forward_tolerance``,
  ``backward_tolerance``);
* relative to the source: our error against an fp64 reference as a multiple of the error of DeepMind's JAX code.

Differences are measured against the largest magnitude of the expected tensor (``relative_to_max``): an elementwise
ratio has no bound where sums cancel, and two correct implementations differ by any factor there.
"""

import math

import torch
from torch import Tensor

# --- Contracts --------------------------------------------------------------------------------------------------------

# fp32 logits against DeepMind's JAX code, absolute, prefill and token-by-token decode, over more than three windows.
# fp32 rounding of a logit of 30 alone is 1.8e-6; a dozen layers of reordered sums stay two digits below this bar.
LOGITS_VS_JAX = 1e-4

# Gradients of one loss against JAX's, max|difference| / max|gradient| of each parameter.
# -expm1(2 log a) against JAX's 1 - exp(2 log a) loses up to eps / (1 - a^2) of a digit there: 1e-7 / 2e-4 for
# a = 0.9999 in single entries, which is what this bar leaves room for.
GRADIENTS_VS_JAX = 1e-4

# Hidden states after each block against JAX's, max|difference| / max|state|. Measured: 8e-6, of which JAX's own error
# against fp64 is five sixths.
HIDDEN_STATES_VS_JAX = 5e-5

# The same computation by two routes of this package in fp32 (split = whole, packed = separate, padded = solo). Only the
# order of sums and the chunk borders of the scan differ, so the bar is five times tighter than the one against JAX. It
# is for logits of up to 5; larger ones carry proportionally larger roundings (``logits_tolerance``): on the golden
# weights, with logits of 9 to 14, either route is 0.5e-5 to 1.2e-5 from fp64, as the matrix kernels have it.
ROWS_EQUAL_SOLO_LOGITS = 2e-5
SPLIT_EQUALS_WHOLE_LOGITS = 2e-5
ROWS_EQUAL_SOLO_GRADIENTS = 1e-4

# fp32 log-probabilities of a serving engine against one uncached forward, absolute. Its products, its attention and the
# order in which it reads a text are others; logits of 20 rounded at a dozen places stay a digit below.
SERVED_LOGPROBS = 1e-4

# Perplexity with quantized linear layers over that in bf16, less one. Measured on all held-out chapters of the demo
# model: less than 0.0001 with int8 rows, 0.005 to 0.014 with int4 in groups of 32 up to whole rows, 0.33 with int2.
INT8_PERPLEXITY = 0.01
INT4_PERPLEXITY = 0.03

# --- Relative to the source -------------------------------------------------------------------------------------------

# Our error against the fp64 reference, per block and per gradient, as a multiple of the error of DeepMind's code. It
# bounds the root mean square; the largest of thousands of errors scatters by more than that between two correct codes,
# so there both may also be within ``rounding_floor``.
ERROR_VS_DEEPMIND = 1.5

# bf16 logits of a freshly initialized model against JAX in fp32 on the same rounded weights, absolute; besides, they
# are no further off than JAX's own bf16 logits (rms). Logits of up to 8 are rounded by up to 2^-9 * 8 = 0.016 when
# stored, and about 50 roundings of the same relative size reach them (``bf16_model_tolerance``): 0.11 for the largest.
LOGITS_BF16 = 0.15

# --- fp64 -------------------------------------------------------------------------------------------------------------

# The model in fp64 against the fp64 reference: a few thousand roundings of eps = 2.2e-16. One op, angle or constant
# that drops to fp32 on the way shows as 1e-8 or more.
FP64_MODEL = 1e-12

# --- Derived from the dtype -------------------------------------------------------------------------------------------


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype the ops accumulate in: fp32 for half precisions, else the dtype itself."""
    return torch.promote_types(dtype, torch.float32)


def forward_tolerance(dtype: torch.dtype, terms: int = 1) -> float:
    """Bar for ``relative_to_max`` of an op's output that sums ``terms`` products per element.

    One rounding to ``dtype`` when the result is stored (eps / 2 of the largest value, doubled because the expected
    tensor may be rounded too), and ``terms`` rounded additions in the accumulator, whose errors add like a random walk
    (sqrt(terms); the factor 8 covers the largest of many elements and the exp, log and division inside gates).
    """
    accumulated = 8 * math.sqrt(terms) * torch.finfo(compute_dtype(dtype)).eps
    return accumulated + (0.0 if dtype == compute_dtype(dtype) else torch.finfo(dtype).eps)


def logits_tolerance(contract: float, logits: Tensor) -> float:
    """``contract``, a bar for logits of up to 5, for ``logits`` as large as these."""
    return contract * max(1.0, _as_fp64(logits).abs().max().item() / 5)


def backward_tolerance(dtype: torch.dtype, terms: int = 1) -> float:
    """Bar for ``relative_to_max`` of a gradient that sums ``terms`` products per element.

    A backward chains about four rounded results (the incoming gradient, the saved input, the product, the stored sum)
    where a forward has one, so the bar is four times the forward's.
    """
    return 4 * forward_tolerance(dtype, terms)


def quantization_step(levels: int) -> float:
    """Bar for |quantized - weight| over the largest magnitude of the group that shares a scale.

    Half a step. The coarsest grid of 2 * levels + 2 codes that torchao makes goes from -max to max in 2 * levels + 1
    steps; one more is allowed for clipping the largest code. Scales in fp32 round far below that.
    """
    return 0.5 / levels


def rounding_floor(dtype: torch.dtype) -> float:
    """``relative_to_max`` of an output whose every element is within a few units in the last place of the largest one.

    Two roundings to ``dtype`` (a sum's terms, the sum) of eps / 2 each, times 4 for the largest of thousands.
    """
    return 4 * torch.finfo(dtype).eps


def bf16_model_tolerance(layers: int) -> float:
    """Bar for rms(difference) / rms(logits) of a bf16 model against fp32 with the same weights.

    A rounding to bf16 changes a value by eps / sqrt(12) of its binade at most (rms). A block rounds about 8 times on
    the way (norm, projections, activations, product, sum; twice), embeddings, final norm and logits 4 times; errors of
    different roundings add in squares. The factor 2 is what the nonlinear blocks may amplify.
    """
    return 2 * torch.finfo(torch.bfloat16).eps / math.sqrt(12) * math.sqrt(8 * layers + 4)


def bf16_loss_tolerance(logits: Tensor, tokens: int, layers: int) -> float:
    """Bar for the mean loss over ``tokens`` labels under bf16 autocast against fp32.

    A token's loss is the difference of its logit and the logsumexp of all, which moves by no more than a logit does:
    sqrt(2) of the logits' error, ``bf16_model_tolerance`` of their rms. Tokens' errors average out like a random walk;
    the factor 3 is for the largest of a few losses.
    """
    per_token = math.sqrt(2) * bf16_model_tolerance(layers) * _as_fp64(logits).square().mean().sqrt().item()
    return 3 * per_token / math.sqrt(tokens)


# --- Comparisons ------------------------------------------------------------------------------------------------------


def _as_fp64(tensor: Tensor) -> Tensor:
    return torch.as_tensor(tensor).detach().to(device="cpu", dtype=torch.float64)


def max_difference(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference, in fp64. NaN or infinity on either side counts as an infinite difference.

    Raises:
        AssertionError: The shapes differ, or the tensors are empty.
    """
    actual, expected = _as_fp64(actual), _as_fp64(expected)
    assert actual.shape == expected.shape, f"shapes differ: {tuple(actual.shape)} and {tuple(expected.shape)}"
    assert actual.numel() > 0, "nothing to compare: the tensors are empty"
    difference = (actual - expected).abs().max().item()
    return difference if math.isfinite(difference) else math.inf


def relative_to_max(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest magnitude of ``expected`` (the difference itself if that is 0)."""
    difference = max_difference(actual, expected)
    return difference / (_as_fp64(expected).abs().max().item() or 1.0)


def root_mean_square_error(actual: Tensor, expected: Tensor) -> float:
    """Root of the mean squared difference, in fp64: the error's size with little noise from single elements."""
    max_difference(actual, expected)
    return (_as_fp64(actual) - _as_fp64(expected)).square().mean().sqrt().item()


def relative_root_mean_square_error(actual: Tensor, expected: Tensor) -> float:
    """``root_mean_square_error`` over the root mean square of ``expected``, which must not be all 0."""
    return root_mean_square_error(actual, expected) / _as_fp64(expected).square().mean().sqrt().item()


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
    """Assert that the largest absolute difference is at most ``tolerance``; ``name`` starts the message."""
    difference = max_difference(actual, expected)
    assert difference <= tolerance, f"{name}: max|difference| {difference:.3g} exceeds {tolerance:.3g}"


def assert_routes_agree(actual: Tensor, expected: Tensor, layers: int, name: str) -> None:
    """Assert that two routes of a model of ``layers`` layers give the same logits, in the dtype of ``expected``.

    In fp32 to the contract of split rows; in bf16 to what both routes' roundings give.
    """
    if expected.dtype == torch.float32:
        assert_close(actual, expected, SPLIT_EQUALS_WHOLE_LOGITS, name)
        return
    error, bar = relative_root_mean_square_error(actual, expected), 2 * bf16_model_tolerance(layers)
    assert error <= bar, f"{name}: rms(difference) / rms(expected) {error:.3g} exceeds {bar:.3g}"


def assert_close_by_max(actual: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
    """Assert that ``relative_to_max`` is at most ``tolerance``; ``name`` starts the message."""
    relative = relative_to_max(actual, expected)
    assert relative <= tolerance, f"{name}: max|difference| / max|expected| {relative:.3g} exceeds {tolerance:.3g}"
