"""Quantized contestants: this package's model with the weights of its linear layers in int8 or int4."""

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from recurrent_gemma.modeling import RecurrentGemmaForCausalLM
from recurrent_gemma.modeling.layers import LINEAR_LAYERS

_NAMES = {name for names in LINEAR_LAYERS.values() for name in names}


def _int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig(set_inductor_config=False)


def _int4() -> Any:
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    return PrototypeInt4WeightOnlyConfig(group_size=32, set_inductor_config=False)


SCHEMES: dict[str, Callable[[], Any]] = {"int8": _int8, "int4": _int4}


def quantized(model: RecurrentGemmaForCausalLM, scheme: str) -> RecurrentGemmaForCausalLM:
    """A copy of ``model`` whose linear layers are quantized as docs/quantization.md says; ``model`` stays as it is.

    Args:
        model: On CPU: the kernel of int4 is for CPU only.
        scheme: One of ``SCHEMES``.

    Raises:
        ImportError: torchao is not installed.
        ValueError: The model is on another device.
    """
    if model.device.type != "cpu":
        raise ValueError(f"device: expected cpu together with quantize, got {model.device}.")
    try:
        from torchao.quantization import quantize_
    except ModuleNotFoundError as error:
        raise ImportError('quantize needs torchao: pip install "recurrent-gemma[quantize]"') from error

    def is_linear_layer(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and name.rpartition(".")[2] in _NAMES

    other = copy.deepcopy(model)
    quantize_(other, SCHEMES[scheme](), filter_fn=is_linear_layer)
    return other
