"""A small task, and Trainers on the tiny model that learn it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback, TrainingArguments

from recurrent_gemma.modeling import RecurrentGemmaForCausalLM
from tests.modeling.models import tiny_model

BOS, FIRST, NUMBERS = 2, 3, 90
Row = dict[str, list[int]]


def rows(count: int, *, seed: int = 0, shortest: int = 9, longest: int = 24) -> list[Row]:
    """Rows of uneven lengths that count on in steps of the row's own, modulo 90: nothing to learn by heart."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    drawn = []
    for _ in range(count):
        start, step, length = draw(0, NUMBERS - 1), draw(1, 4), draw(shortest, longest)
        ids = [BOS, *(FIRST + (start + step * i) % NUMBERS for i in range(length - 1))]
        # The first two numbers tell start and step, and cannot be known.
        drawn.append({"input_ids": ids, "labels": [-100] * 3 + ids[3:]})
    return drawn


def collate(batch: Sequence[Row]) -> dict[str, Tensor]:
    """Rows padded on the right, with a mask; -100 where no loss is wanted."""
    length = max(len(row["input_ids"]) for row in batch)
    fills = {"input_ids": 0, "labels": -100}
    columns = {
        name: torch.tensor([row[name] + [fill] * (length - len(row[name])) for row in batch])
        for name, fill in fills.items()
    }
    columns["attention_mask"] = torch.tensor(
        [[1] * len(row["input_ids"]) + [0] * (length - len(row["input_ids"])) for row in batch]
    )
    return columns


def row_logits(model: RecurrentGemmaForCausalLM, row: Row) -> Tensor:
    """Logits (L, vocab_size) of one row, read alone."""
    with torch.no_grad():
        return model(torch.tensor([row["input_ids"]]), use_cache=False).logits[0]


def token_losses(model: RecurrentGemmaForCausalLM, batch: Sequence[Row], label_smoothing: float = 0.0) -> Tensor:
    """Loss of each label of the rows, one after the other, each row read alone."""
    losses = []
    for row in batch:
        logits, labels = row_logits(model, row)[:-1], torch.tensor(row["labels"][1:])
        loss = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
        losses.append(loss[labels != -100])
    return torch.cat(losses)


def arguments(output_dir: Path, **options: Any) -> TrainingArguments:
    """Arguments of a quiet run on the CPU, in which every step is logged and nothing is saved or evaluated."""
    defaults = {
        "use_cpu": True,
        "max_steps": 5,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(output_dir=str(output_dir), **{**defaults, **options})


def trainer(
    output_dir: Path,
    *,
    model: RecurrentGemmaForCausalLM | None = None,
    data: Sequence[Row] | None = None,
    held_out: Sequence[Row] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    kind: type[Trainer] = Trainer,
    extra: dict[str, Any] | None = None,
    **options: Any,
) -> Trainer:
    """A Trainer of the tiny model; ``options`` are TrainingArguments, ``extra`` further arguments of the Trainer."""
    return kind(
        model=tiny_model() if model is None else model,
        args=arguments(output_dir, **options),
        train_dataset=rows(32) if data is None else data,
        eval_dataset=held_out,
        data_collator=collate,
        callbacks=list(callbacks),
        **(extra or {}),
    )


def losses(run: Trainer) -> list[float]:
    """The training losses that a run has logged."""
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


class Gradients(TrainerCallback):
    """Keeps each optimizer step's gradients, before they are clipped or used."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
