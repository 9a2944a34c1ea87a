"""Training: what Trainer, PEFT and TRL lack for models of this family."""

from recurrent_gemma.training.packing import PackingCollator, pack_documents

__all__ = ["PackingCollator", "pack_documents"]
