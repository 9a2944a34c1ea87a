"""A linear layer's product, by the route that is fast for its shape: torch's own does badly on CPU in two cases."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurrent_gemma.modeling.ops.dispatch import choose_backend, is_traced
from recurrent_gemma.modeling.ops.linear.row import (
    block_diagonal_row_reduced,
    linear_row_in_blocks,
    linear_row_reduced,
)
from recurrent_gemma.modeling.ops.linear.widened import block_diagonal_widened, linear_widened

# Rows from which widening a half-precision weight, once for all of them, costs less than it saves.
_WIDENED_ROWS = 16
# Elements of a weight from which a second thread saves more than its start costs.
_BLOCKED_ELEMENTS = 1 << 17

# Classes of weights that are nothing but their values.
_PLAIN = (Tensor, nn.Parameter)

_BACKENDS = ("torch", "blocked", "reduced", "widened")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, impl: str | None = None) -> Tensor:
    """``x @ weight.T + bias``, as ``torch.nn.functional.linear``, which says what is allowed and what it raises.

    Args:
        x: (..., D_in).
        weight: (D_out, D_in).
        bias: (D_out,).
        impl: Forces a backend. ``"torch"`` is the default. In inference on CPU, these take its place: for a single row,
            ``"blocked"`` (fp32, several threads) or, in compiled code, ``"reduced"``; for many rows in half precision
            on CPUs that have no instructions for it, ``"widened"``, which computes in fp32.

    Returns:
        (..., D_out) in x's dtype.

    Raises:
        ValueError: ``impl`` does not exist or cannot take these shapes.
    """
    backend = choose_backend("linear", impl, _BACKENDS, "torch" if impl else default_backend(x, weight))
    if backend == "torch":
        return F.linear(x, weight, bias)
    if impl in ("blocked", "reduced"):
        _expect_row(x, impl)
    if impl == "blocked" and not _divides(torch.get_num_threads(), weight):
        raise ValueError(
            f"impl: expected another than 'blocked', whose {torch.get_num_threads()} threads each take as many of the "
            f"weight's rows, got a weight of {tuple(weight.shape)}."
        )
    if backend == "blocked":
        return linear_row_in_blocks(x, weight, bias)
    if backend == "reduced":
        return linear_row_reduced(x, weight, bias)
    return linear_widened(x, weight, bias)


def block_diagonal_linear(x: Tensor, weight: Tensor, bias: Tensor, *, impl: str | None = None) -> Tensor:
    """Each head's part of x times its own matrix. Source: ``BlockDiagonalLinear`` in ``recurrentgemma/jax/layers.py``.

    Args:
        x: (..., H * D).
        weight: (H, D, D), input dimension first.
        bias: (H, D).
        impl: Forces a backend, as in ``linear``; all but ``"blocked"``.

    Returns:
        (..., H * D) in x's dtype.

    Raises:
        ValueError: ``impl`` does not exist or cannot take these shapes.
    """
    # A batch of matrices, so all threads work at one row as well; in half precision torch takes them one by one.
    default = "torch" if impl else default_backend(x, weight, batched=True)
    backend = choose_backend("block_diagonal_linear", impl, ("torch", "reduced", "widened"), default)
    heads, width, _ = weight.shape
    if backend == "reduced":
        _expect_row(x, backend)
        return block_diagonal_row_reduced(x, weight, bias)
    multiply = block_diagonal_widened if backend == "widened" else torch.baddbmm
    if x.numel() == heads * width:  # a single row needs no exchange of dimensions
        return multiply(bias[:, None], x.reshape(heads, 1, width), weight).view(x.shape)
    blocks = x.reshape(-1, heads, width).transpose(0, 1)
    return multiply(bias[:, None], blocks, weight).transpose(0, 1).reshape(x.shape)


def default_backend(x: Tensor, weight: Tensor, *, batched: bool = False) -> str:
    # Weights of other classes, quantized ones above all, bring their own product.
    if not x.is_cpu or torch.is_grad_enabled() or weight.dtype != x.dtype or type(weight) not in _PLAIN:
        return "torch"
    one_row = x.numel() == x.shape[-1]
    if is_traced():
        reduces = one_row and torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu")
        return "reduced" if reduces else "torch"
    if x.dtype == torch.float32:
        return "blocked" if one_row and not batched and _blocks_pay(weight) else "torch"
    many = batched or x.numel() >= _WIDENED_ROWS * x.shape[-1]
    return "widened" if many and _is_slow_on_cpu(x.dtype) else "torch"


def _blocks_pay(weight: Tensor) -> bool:
    threads = torch.get_num_threads()
    return threads > 1 and weight.numel() >= _BLOCKED_ELEMENTS and _divides(threads, weight)


def _expect_row(x: Tensor, backend: str) -> None:
    if x.numel() != x.shape[-1]:
        raise ValueError(
            f"impl: expected another than {backend!r}, which takes a single row, got x of {tuple(x.shape)}."
        )


def _divides(blocks: int, weight: Tensor) -> bool:
    return weight.shape[0] % blocks == 0


@functools.cache
def _is_slow_on_cpu(dtype: torch.dtype) -> bool:
    """Whether this machine's CPU multiplies matrices of ``dtype`` slower than it does in fp32."""
    if dtype == torch.bfloat16:
        return not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return dtype == torch.float16 and not torch.cpu._is_amx_fp16_supported()
