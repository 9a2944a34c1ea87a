"""What the recipes that train on plain text share: options, documents to train on and to hold out, memory savers."""

import argparse
from pathlib import Path
from typing import Any

import recipe
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

HELD_OUT = 5  # the last fifth of each document is not trained on

# Transformers 5.24 has a new name for it.
_CHECKPOINTING = "activation_checkpointing"
if _CHECKPOINTING not in TrainingArguments.__dataclass_fields__:
    _CHECKPOINTING = "gradient_checkpointing"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options for one's own text and for models that fill the memory."""
    parser.add_argument("--text", type=Path, nargs="+", help="text files, one document each, instead of the chapters")
    parser.add_argument("--gradient-accumulation-steps", type=int, default=1, help="batches of a step")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16, keep weights in float32")
    parser.add_argument(
        "--gradient-checkpointing", action="store_true", help="compute each block again for its gradient"
    )
    parser.add_argument("--optim", default="adamw_torch", help="optimizer; adafactor keeps next to no state")


def split_documents(files: list[Path] | None) -> tuple[list[str], list[str]]:
    """Documents to train on, and the end of each, which is held out, both in order."""
    documents = [path.read_text(encoding="utf-8") for path in files] if files else recipe.documents()
    names = [str(path) for path in files] if files else [f"chapter {index}" for index in range(len(documents))]
    pairs = [_split(document, name) for document, name in zip(documents, names, strict=True)]
    return [begin for begin, _ in pairs], [end for _, end in pairs]


def _split(document: str, name: str) -> tuple[str, str]:
    """The beginning of a document and its last fifth, from the last space before that on if there is one."""
    place = len(document) * (HELD_OUT - 1) // HELD_OUT
    space = document.rfind(" ", 0, place)
    cut = space if space > 0 else place
    begin, end = document[:cut], document[cut:].strip()
    if not begin.strip() or not end:
        raise ValueError(
            f"--text: expected documents to train on and to hold out the end of, got {len(document)} characters in "
            f"{name}, of which one part would be empty; leave it out, or join it with another file."
        )
    return begin, end


def load(options: argparse.Namespace) -> tuple[Any, Any]:
    """Model, in float32, and tokenizer."""
    torch.manual_seed(options.seed)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(options.model)


def training_arguments(options: argparse.Namespace, **settings: Any) -> TrainingArguments:
    """The Trainer's arguments that follow from the options; ``settings`` are a recipe's own."""
    return TrainingArguments(
        output_dir=str(options.output / "checkpoints"),
        max_steps=options.steps,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, options.steps // 10),
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        optim=options.optim,
        bf16=options.bf16,
        seed=options.seed,
        eval_strategy="steps",
        eval_steps=max(1, options.steps // 4),
        logging_steps=max(1, options.steps // 20),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.accelerator.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        **{_CHECKPOINTING: options.gradient_checkpointing},
        **settings,
    )
