"""What tests of TRL's trainers share: the small English model, texts, and settings for a CPU."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from recurrent_gemma import demo_path
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM


def demo_model() -> RecurrentGemmaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(demo_path(), dtype=torch.float32)


def demo_texts(length: int = 400) -> list[str]:
    """The beginnings of English documents that the small model was not trained on."""
    text = (demo_path() / "heldout.txt").read_text(encoding="utf-8")
    return [document.strip()[:length] for document in text.split("<bos>") if document.strip()]


def settings(folder: Path, **options: Any) -> dict[str, Any]:
    """Fields of a trainer's config that keep it on the CPU, in fp32, quiet and without files."""
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "lr_scheduler_type": "constant",
        "max_steps": 1,
        "per_device_train_batch_size": 1,
        **options,
    }
