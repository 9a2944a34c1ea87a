"""Training: what Trainer, PEFT and TRL lack for models of this family."""

__all__: list[str] = []
