"""Preferences with TRL's DPO: of two ends of a sentence, the model learns to write the one that is preferred.

The pairs are made here from chapters that the small model was not trained on: the end as it stands in the book is
preferred to the same words in another order. The held-out measure is the share of pairs from other chapters whose
preferred end has become more probable, against the model before, by more than the other end has.

    python examples/fine_tuning/dpo.py --output dpo

The reference is the model without the adapter, which takes no memory of its own. For the real model, on one GPU of
24 GB, in bfloat16 with activation checkpointing:

    python examples/fine_tuning/dpo.py --model google/recurrentgemma-2b-it --output dpo --learning-rate 5e-5 \\
        --batch-size 2 --accumulate 8 --bf16 --gradient-checkpointing
"""

import argparse
import random
from typing import Any

import adapters
import torch
from recipe import documents, parser, save, save_curves
from transformers import AutoModelForCausalLM, AutoTokenizer

from recurrent_gemma.training import lora_config

PROMPT_WORDS, END_WORDS = 24, 8


def pairs(texts: list[str], count: int, seed: int) -> list[dict[str, str]]:
    """``count`` beginnings of passages from ``texts``, each with its own end and with that end's words shuffled.

    Args:
        texts: Chapters.
        count: Of pairs.
        seed: Of which passages, and of the shuffling.
    """
    draw = random.Random(seed)
    rows = []
    while len(rows) < count:
        words = draw.choice(texts).split()
        start = draw.randrange(max(1, len(words) - PROMPT_WORDS - END_WORDS))
        prompt, end = words[start : start + PROMPT_WORDS], words[start + PROMPT_WORDS :][:END_WORDS]
        shuffled = draw.sample(end, len(end))
        if shuffled != end:
            join = " ".join
            rows.append({"prompt": join(prompt), "chosen": f" {join(end)}", "rejected": f" {join(shuffled)}"})
    return rows


def options() -> argparse.ArgumentParser:
    choices = parser(__doc__ or "", steps=40, output="dpo", learning_rate=1e-3)
    choices.add_argument("--beta", type=float, default=0.1, help="how much departing from the reference costs")
    choices.add_argument("--examples", type=int, default=400, help="pairs to learn from; a tenth more are held out")
    adapters.add_options(choices, batch_size=8, rows="pairs")
    return choices


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Tune, and return the held-out measures before and after."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    given = options().parse_args(arguments)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    dtype = torch.bfloat16 if given.bf16 else torch.float32
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=dtype)
    chapters = documents()
    held_out = pairs(chapters[::5], max(8, given.examples // 10), seed=1)
    train = pairs([text for i, text in enumerate(chapters) if i % 5], given.examples, seed=given.seed)
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            beta=given.beta,
            **adapters.settings(given),
        ),
        train_dataset=Dataset.from_list(train),
        eval_dataset=Dataset.from_list(held_out),
        processing_class=tokenizer,
        peft_config=lora_config(model, rank=given.rank),
    )
    before = trainer.evaluate()
    log = list(trainer.state.log_history)  # training starts a new one
    trainer.train()
    after = trainer.evaluate()
    plot = save_curves(log + trainer.state.log_history, given.output, title="DPO", per="pair")
    save(trainer, given.output / "adapter")
    measures = {}
    for name in ("loss", "rewards/accuracies", "rewards/margins"):
        measures[name] = before[f"eval_{name}"], after[f"eval_{name}"]
        print(f"held-out {name}: {measures[name][0]:.3f} before, {measures[name][1]:.3f} after")
    print(f"plot: {plot}; adapter: {given.output / 'adapter'}")
    return measures


if __name__ == "__main__":
    main()
