"""Training: what Trainer, PEFT and TRL lack for models of this family."""

from recurrent_gemma.training.adapter_checks import check_adapter
from recurrent_gemma.training.coverage import LoraCoverage, ParameterCoverage, lora_coverage
from recurrent_gemma.training.lora import lora_config

__all__ = ["LoraCoverage", "ParameterCoverage", "check_adapter", "lora_config", "lora_coverage"]
