"""``RecurrentGemmaPreTrainedModel``: what all models of the family share, which is loading and initialization."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, TorchAoConfig
from transformers import initialization as init

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling.layers import RecurrentGemmaConv1d, RecurrentGemmaRglru, RecurrentGemmaRMSNorm
from recurrent_gemma.modeling.loading import expect_complete, expect_config, naming_broken_files
from recurrent_gemma.modeling.quantization import expect_fitting, expect_quantized

# Radius of the ring on which the recurrence's a is drawn (``RGLRU.a_real_param_init`` in recurrentgemma/jax/layers.py).
_MIN_RADIUS, _MAX_RADIUS = 0.9, 0.999


class RecurrentGemmaPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialization of the family's models."""

    config: RecurrentGemmaConfig
    config_class = RecurrentGemmaConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["RecurrentGemmaDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _is_stateful = False
    _can_compile_fullgraph = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint, as ``PreTrainedModel.from_pretrained`` does, but never a part of one.

        Args:
            pretrained_model_name_or_path: Directory or repository id.
            *model_args: As in Transformers.
            **kwargs: As in Transformers, but for ``use_safetensors``: ``None`` and ``True`` read safetensors only,
                ``False`` reads pickled ``.bin`` files.

        Raises:
            ValueError: Weights of the model are missing, misshapen, unexpected, or tied and yet different; all are
                named. Heads that a checkpoint of another task cannot have, and tied weights, may be missing.
            OSError: There is no config, there are no safetensors files, or one of them is broken.
        """
        source = "state_dict" if pretrained_model_name_or_path is None else str(pretrained_model_name_or_path)
        folder = Path(source, kwargs.get("subfolder") or "")
        if kwargs.get("config") is None:
            expect_config(folder)
        wants_info = kwargs.pop("output_loading_info", False)
        if kwargs.get("use_safetensors") is None and kwargs.get("state_dict") is None:
            kwargs["use_safetensors"] = True
        tolerate_shapes = kwargs.get("ignore_mismatched_sizes", False)
        # Collect every mismatch, to name them all.
        kwargs["ignore_mismatched_sizes"] = True
        quantization = kwargs.get("quantization_config")
        if isinstance(quantization, TorchAoConfig):
            cls._expect_fitting(pretrained_model_name_or_path, quantization, kwargs)
        with naming_broken_files(source, folder):
            loaded: Any = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
            )
        model, info = loaded
        expect_complete(model, info, source, tolerate_shapes)
        expect_quantized(model, source)
        return (model, info) if wants_info else model

    @classmethod
    def _expect_fitting(cls, name: Any, quantization: TorchAoConfig, options: dict[str, Any]) -> None:
        config = options.get("config")
        if config is None and not Path(str(name), "adapter_config.json").exists():
            config, _ = cls.config_class.from_pretrained(name, return_unused_kwargs=True, **options)
        # Transformers warns that it leaves ``quantization`` aside where a checkpoint is quantized already.
        if isinstance(config, PreTrainedConfig) and getattr(config, "quantization_config", None) is None:
            with torch.device("meta"):
                expect_fitting(cls(config), quantization)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Variances of DeepMind's JAX code. Only modules that own parameters arrive here.
        if isinstance(module, RecurrentGemmaRMSNorm):
            init.zeros_(module.weight)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.hidden_size**-0.5)
        elif isinstance(module, RecurrentGemmaConv1d):
            init.normal_(module.weight, std=math.sqrt(self.config.w_init_variance_scale / self.config.conv1d_width))
            init.zeros_(module.bias)
        elif isinstance(module, RecurrentGemmaRglru):
            for weight in (module.input_gate_weight, module.recurrent_gate_weight):
                init.normal_(weight, std=self.config.lru_width**-0.5)
            for bias in (module.input_gate_bias, module.recurrent_gate_bias):
                init.zeros_(bias)
            init.copy_(module.recurrent_param, _draw_recurrent_param(module.recurrent_param))
        elif isinstance(module, nn.Linear):
            scale = vars(module).get("init_scale", 1.0)
            init.normal_(module.weight, std=math.sqrt(scale / module.in_features))
            if module.bias is not None:
                init.zeros_(module.bias)


def _draw_recurrent_param(like: Tensor) -> Tensor:
    """a uniform on the ring by area, through the inverse of a = exp(-softplus(param))."""
    squared = torch.rand_like(like, dtype=torch.float32) * (_MAX_RADIUS**2 - _MIN_RADIUS**2) + _MIN_RADIUS**2
    log_a = 0.5 * torch.log(squared + 1e-8)
    return torch.log(torch.expm1(-log_a))
