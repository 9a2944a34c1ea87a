"""What the recipes that tune an adapter with TRL share: options, and the settings that follow from them."""

import argparse
from typing import Any

import torch


def add_options(parser: argparse.ArgumentParser, *, batch_size: int, rows: str) -> None:
    """Options of the adapter and of how much is computed at once.

    Args:
        parser: Gets the options.
        batch_size: The default, of ``rows``.
        rows: What a batch is made of.
    """
    parser.add_argument("--rank", type=int, default=16, help="of the adapter's updates")
    parser.add_argument("--batch-size", type=int, default=batch_size, help=f"{rows} per device and step")
    parser.add_argument("--accumulate", type=int, default=1, help="batches per optimizer step")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="recompute activations to save memory")


def settings(given: argparse.Namespace) -> dict[str, Any]:
    """Arguments of TRL's configs that follow from the options."""
    return {
        "output_dir": str(given.output / "checkpoints"),
        "max_steps": given.steps,
        "learning_rate": given.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": max(1, given.steps // 20),
        "per_device_train_batch_size": given.batch_size,
        "per_device_eval_batch_size": given.batch_size,
        "gradient_accumulation_steps": given.accumulate,
        "gradient_checkpointing": given.gradient_checkpointing,
        "bf16": given.bf16,
        "logging_steps": max(1, given.steps // 20),
        "eval_strategy": "steps",
        "eval_steps": -(-given.steps // 4),
        "save_strategy": "no",
        "report_to": "none",
        "seed": given.seed,
        "use_cpu": not torch.accelerator.is_available(),
    }
