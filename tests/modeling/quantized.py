"""Models quantized by torchao, as tests of quantization make and read them."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import TorchAoConfig

from recurrent_gemma import demo_path
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM
from tests.support import require

require("torchao")
from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig  # noqa: E402
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup  # noqa: E402
from torchao.utils import TorchAOBaseTensor  # noqa: E402


def intx(bits: int, group: int) -> IntxWeightOnlyConfig:
    return IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=PerGroup(group))


INT8, INT4, UNPACKED = Int8WeightOnlyConfig(), PrototypeInt4WeightOnlyConfig(group_size=32), intx(4, 32)
EVERY_SCHEME = pytest.mark.parametrize("scheme", [INT8, INT4, UNPACKED], ids=["int8", "int4", "unpacked int4"])
SAVED_SCHEMES = pytest.mark.parametrize("scheme", [INT8, UNPACKED], ids=["int8", "unpacked int4"])
DOWN = "model.layers.0.mlp_block.down_proj"
PROMPT = torch.tensor([[2, *range(100, 140)]])


def load(scheme: Any, *, source: Any = None, cls: Any = RecurrentGemmaForCausalLM, **options: Any) -> Any:
    """The demo model, or the one at ``source``, quantized on loading; options of ``TorchAoConfig`` are sorted out."""
    fields = ("modules_to_not_convert", "include_input_output_embeddings", "untie_embedding_weights")
    quantization = TorchAoConfig(scheme, **{name: options.pop(name) for name in fields if name in options})
    options = {"dtype": torch.bfloat16, **options}
    return cls.from_pretrained(source or demo_path(), quantization_config=quantization, **options)


def quantized_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if isinstance(parameter, TorchAOBaseTensor)}


@torch.no_grad()
def logits(model: nn.Module, ids: torch.Tensor = PROMPT) -> torch.Tensor:
    return model(ids).logits
