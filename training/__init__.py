"""Training: what Trainer, PEFT and TRL lack for models of this family."""

from recurrent_gemma.training.adapter_checks import check_adapter
from recurrent_gemma.training.coverage import LoraCoverage, ParameterCoverage, lora_coverage
from recurrent_gemma.training.lora import lora_config
from recurrent_gemma.training.packing import PackingCollator, pack_documents
from recurrent_gemma.training.truncated_bptt import TruncatedBPTTTrainer
from recurrent_gemma.training.windows import cut_into_windows

__all__ = [
    "LoraCoverage",
    "PackingCollator",
    "ParameterCoverage",
    "TruncatedBPTTTrainer",
    "check_adapter",
    "cut_into_windows",
    "lora_config",
    "lora_coverage",
    "pack_documents",
]
