"""LoRA instruction tuning with TRL: chats, a loss on the answers alone, the adapter saved and merged.

The small model has never seen a chat. Its lessons are written here, from chapters of books that it was not trained
on: whether a passage is from the Bible or from a novel, and which words go on. The held-out measure is the loss per
token of answers about other chapters.

    python examples/fine_tuning/lora.py --output lora

For the real model, on one GPU of 24 GB, in bfloat16 with activation checkpointing:

    python examples/fine_tuning/lora.py --model google/recurrentgemma-2b-it --output lora --learning-rate 2e-4 \\
        --batch-size 4 --accumulate 4 --bf16 --gradient-checkpointing
"""

import argparse
import random
from typing import Any

import adapters
import torch
from recipe import documents, parser, save, save_curves
from transformers import AutoModelForCausalLM, AutoTokenizer

from recurrent_gemma.training import lora_config, lora_coverage

QUESTION = "Is this from the Bible or from a novel?"
CONTINUE = "Go on with this text."
BIBLE, NOVEL = "This is from the Bible.", "This is from a novel."
PASSAGE_WORDS, ANSWER_WORDS = 24, 8


def lessons(texts: list[str], count: int, seed: int) -> list[dict[str, Any]]:
    """``count`` chats of a question about a passage from ``texts`` and its answer, of both kinds in turn.

    Args:
        texts: Chapters. Those of the Bible are told by how its sentences begin.
        count: Of chats.
        seed: Of which passages are asked about.
    """
    draw = random.Random(seed)
    chats = []
    for number in range(count):
        text = draw.choice(texts)
        words = text.split()
        start = draw.randrange(max(1, len(words) - PASSAGE_WORDS - ANSWER_WORDS))
        passage = " ".join(words[start : start + PASSAGE_WORDS])
        if number % 2:
            end = " ".join(words[start + PASSAGE_WORDS : start + PASSAGE_WORDS + ANSWER_WORDS])
            question, answer = f"{CONTINUE}\n{passage}", end
        else:
            is_bible = words.count("unto") + words.count("ye") + words.count("LORD") > len(words) / 200
            question, answer = f"{QUESTION}\n{passage}", BIBLE if is_bible else NOVEL
        chats.append({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
    return chats


def answer(model: Any, tokenizer: Any, question: str) -> str:
    """What ``model`` answers, greedily, until it ends its turn."""
    chat = [{"role": "user", "content": question}]
    encoded = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    encoded = encoded.to(model.device)
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    ids = model.generate(**encoded, max_new_tokens=24, do_sample=False, eos_token_id=[end, tokenizer.eos_token_id])
    return tokenizer.decode(ids[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def options() -> argparse.ArgumentParser:
    choices = parser(__doc__ or "", steps=60, output="lora", learning_rate=2e-3)
    choices.add_argument("--gates", action="store_true", help="adapt the gates of the RG-LRU as well")
    choices.add_argument("--examples", type=int, default=400, help="chats to learn from; a tenth more are held out")
    adapters.add_options(choices, batch_size=2, rows="rows of 512 tokens")
    return choices


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Tune, and return the held-out losses and the answers before and after."""
    from datasets import Dataset
    from peft import PeftModel
    from trl import SFTConfig, SFTTrainer

    given = options().parse_args(arguments)
    dtype = torch.bfloat16 if given.bf16 else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=dtype)
    chapters = documents()
    held_out = lessons(chapters[::5], max(8, given.examples // 10), seed=1)
    train = lessons([text for i, text in enumerate(chapters) if i % 5], given.examples, seed=given.seed)
    question = held_out[0]["messages"][0]["content"]
    before = answer(model, tokenizer, question)

    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            packing=True,
            eval_packing=False,
            max_length=512,
            assistant_only_loss=True,
            **adapters.settings(given),
        ),
        train_dataset=Dataset.from_list(train),
        eval_dataset=Dataset.from_list(held_out),
        processing_class=tokenizer,
        peft_config=lora_config(model, rank=given.rank, gates=given.gates),
    )
    print(lora_coverage(trainer.model))
    loss_before = trainer.evaluate()["eval_loss"]
    log = list(trainer.state.log_history)  # training starts a new one
    trainer.train()
    loss_after = trainer.evaluate()["eval_loss"]
    plot = save_curves(log + trainer.state.log_history, given.output, title="LoRA instruction tuning")
    save(trainer, given.output / "adapter")

    # As a user of the adapter would load it.
    base = AutoModelForCausalLM.from_pretrained(given.model, dtype=dtype)
    merged = PeftModel.from_pretrained(base, given.output / "adapter").merge_and_unload()
    merged.save_pretrained(given.output / "merged")
    tokenizer.save_pretrained(given.output / "merged")
    after = answer(AutoModelForCausalLM.from_pretrained(given.output / "merged", dtype=dtype), tokenizer, question)
    print(f"held-out loss per token of the answers: {loss_before:.3f} before, {loss_after:.3f} after; {plot}")
    print(f"> {question}\nbefore: {before!r}\nafter:  {after!r}")
    return {"before": loss_before, "after": loss_after, "answers": (before, after), "adapter": given.output / "adapter"}


if __name__ == "__main__":
    main()
