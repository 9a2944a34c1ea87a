"""Quantized contestants: this package's model with the weights of its linear layers in int8 or int4."""

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from benchmarks.models import Size
from benchmarks.peers.contestant import Contestant, UnavailableError
from benchmarks.peers.transformers_model import TransformersModel
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM
from recurrent_gemma.modeling.layers import LINEAR_LAYER_NAMES


def _int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig(set_inductor_config=False)


def _int4() -> Any:
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    return PrototypeInt4WeightOnlyConfig(group_size=32, set_inductor_config=False)


SCHEMES: dict[str, Callable[[], Any]] = {"int8": _int8, "int4": _int4}


class QuantizedDecoding(TransformersModel):
    """Our model with quantized linear layers, decoding. Its dtype is that of the model it was made of.

    Args:
        model: On CPU: the kernel of int4 is for CPU only. It stays as it is.
        scheme: One of ``SCHEMES``.

    Raises:
        UnavailableError: torchao is not installed or cannot quantize these shapes, or the model is on another device.
    """

    def __init__(self, model: RecurrentGemmaForCausalLM, scheme: str) -> None:
        if model.device.type != "cpu":
            raise UnavailableError("its kernels are for CPU")
        try:
            from torchao.quantization import quantize_
        except ModuleNotFoundError:
            raise UnavailableError('it needs torchao: pip install "recurrent-gemma[quantize]"') from None
        other = copy.deepcopy(model)
        try:
            quantize_(other, SCHEMES[scheme](), filter_fn=_is_linear_layer)
        except RuntimeError as error:
            raise UnavailableError(f"torchao cannot quantize these shapes: {error}") from error
        super().__init__(other)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.note = f"linear layers in {scheme}, as docs/quantization.md says"

    def to(self, dtype: str) -> None:
        """Made in its dtype already."""


def _is_linear_layer(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and name.rpartition(".")[2] in LINEAR_LAYER_NAMES


def build_quantized_peer(scheme: str, size: Size, ours: TransformersModel) -> Contestant:
    """Our model with the weights of its linear layers in ``scheme``."""
    return QuantizedDecoding(ours.model, scheme)
