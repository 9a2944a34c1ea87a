"""Training: what Trainer, PEFT and TRL lack for models of this family."""

from recurrent_gemma.training.packing import PackingCollator, pack_documents
from recurrent_gemma.training.truncated_bptt import TruncatedBPTTTrainer
from recurrent_gemma.training.windows import cut_into_windows

__all__ = ["PackingCollator", "TruncatedBPTTTrainer", "cut_into_windows", "pack_documents"]
