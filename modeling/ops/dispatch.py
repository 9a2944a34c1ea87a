"""What every op's ``api.py`` shares: argument checks, the choice of a backend, and when to use the op registry."""

import functools
import importlib.util
import logging
import os
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

logger = logging.getLogger("recurrent_gemma")

_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None


def expect_shape(name: str, tensor: Tensor, shape: Sequence[int], meaning: str) -> None:
    """Raise ValueError unless ``tensor`` has ``shape``."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name}: expected shape {meaning} = {tuple(shape)}, got {tuple(tensor.shape)}.")


def expect_floating(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless ``tensor`` is a floating-point tensor."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name}: expected a floating-point tensor, got {got}.")


def expect_markers(name: str, tensor: Tensor | None, batch: int, length: int) -> None:
    """Raise unless ``tensor`` is None or boolean of shape (B, L)."""
    if tensor is None:
        return
    if tensor.dtype != torch.bool:
        raise TypeError(f"{name}: expected a bool tensor, got {tensor.dtype}; compare it with 0 first.")
    expect_shape(name, tensor, (batch, length), "(B, L)")


def expect_sequence(name: str, tensor: Tensor, meaning: str = "(B, L, R)") -> None:
    """Raise unless ``tensor`` is floating-point, of as many dimensions as ``meaning`` lists, and none of them empty."""
    expect_floating(name, tensor)
    if tensor.ndim != meaning.count(",") + 1 or 0 in tensor.shape:
        raise ValueError(f"{name}: expected a non-empty {meaning} tensor, got shape {tuple(tensor.shape)}.")


def choose_backend(op: str, impl: str | None, backends: Sequence[str], default: str) -> str:
    """The backend to run. ``impl`` forces one and never falls back; the default is logged once."""
    if impl is None:
        if not torch.compiler.is_compiling():
            _log_default(op, default)
        return default
    if impl not in backends:
        raise ValueError(f"impl: expected one of {list(backends)} for {op}, got {impl!r}.")
    return impl


def choose_kernel_backend(op: str, impl: str | None, x: Tensor, torch_backend: str) -> str:
    """The backend of an op with Triton kernels, which are the default for ``x`` on CUDA where they can take it.

    Raises:
        ImportError: ``impl`` is ``"triton"``, which is not installed.
        ValueError: ``impl`` does not exist, or is ``"triton"`` and ``x`` in fp64 or on another device.
    """
    takes = x.dtype != torch.float64
    default = "triton" if takes and x.device.type == "cuda" and _TRITON_INSTALLED else torch_backend
    backend = choose_backend(op, impl, ("triton", torch_backend, "reference"), default)
    if impl == "triton":
        if not _TRITON_INSTALLED:
            raise ImportError('impl: "triton" needs Triton: pip install "recurrent-gemma[kernels]"')
        # Triton's interpreter runs kernels on any device.
        if not takes or not (x.device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"):
            raise ValueError(
                f"impl: expected another than 'triton' for {x.dtype} on {x.device}; it computes in fp32 on CUDA "
                "devices."
            )
    return backend


@functools.cache
def _log_default(op: str, backend: str) -> None:
    logger.info("%s runs on backend %r", op, backend)


def holds_on_cpu(condition: Tensor) -> bool:
    """Whether ``condition`` holds everywhere; False where looking would wait for a device or break a graph."""
    return condition.device.type == "cpu" and not torch.compiler.is_compiling() and bool(condition.all())


def is_traced() -> bool:
    """Whether a compiler or a transform of functorch looks on, rather than autograd at most."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def needs_registered_op(*tensors: Tensor | None) -> bool:
    """Whether autograd, a transform or a tracer must see one registered op. Plain inference skips its overhead."""
    if is_traced():
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def compiles_as_step(x: Tensor) -> bool:
    """Whether x is one step (B, 1, R) of compiled inference, for which the compiler takes plain code best."""
    return torch.compiler.is_compiling() and not torch.is_grad_enabled() and x.ndim == 3 and x.shape[1] == 1


def refuse_forward_mode(op: str, *tensors: Tensor | None) -> None:
    """Raise if a tensor carries a forward-mode tangent, which a custom op would silently drop."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    for tensor in tensors:
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(f"{op}: forward-mode differentiation is not supported; use reverse mode.")
