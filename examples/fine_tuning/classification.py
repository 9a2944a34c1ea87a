"""Teach the small model to tell the King James Bible from Jane Austen by a few words.

    python examples/fine_tuning/classification.py

A linear layer on the last token's hidden state is new and random; with it the whole model is trained. The texts are
those that the model was not trained on, and the chapters of the held-out part are not those of the training part.
"""

import recipe
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)

LABELS = ["austen", "bible"]


def excerpts(documents: list[str], words: int, count: int) -> list[str]:
    """Up to ``count`` pieces of ``words`` words in lower case, evenly spread over the documents."""
    pieces = []
    for document in documents:
        tokens = document.lower().split()
        pieces += [" ".join(tokens[start : start + words]) for start in range(0, len(tokens) - words + 1, words)]
    count = min(count, len(pieces))
    return [pieces[index * len(pieces) // count] for index in range(count)]


def make_data(words: int, count: int) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Excerpts with labels for training (``count`` of each label) and, from other chapters, held out (a quarter)."""
    training, held_out = [], []
    for label, name in enumerate(LABELS):
        # Austen's chapters have paragraphs.
        documents = [text for text in recipe.documents() if ("\n\n" in text) == (name == "austen")]
        others = [text for index, text in enumerate(documents) if index % 5]
        training += [(text, label) for text in excerpts(others, words, count)]
        held_out += [(text, label) for text in excerpts(documents[::5], words, count // 4)]
    return training, held_out


def encode(tokenizer, data: list[tuple[str, int]]) -> list[dict]:
    """Rows for the Trainer, of uneven lengths."""
    ids = tokenizer([text for text, _ in data]).input_ids
    return [{"input_ids": row, "labels": label} for row, (_, label) in zip(ids, data, strict=True)]


def accuracy(prediction) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Train, save, load again; returns the held-out accuracy before and after."""
    parser = recipe.parser(__doc__, steps=60, output="runs/classification", learning_rate=3e-4)
    parser.add_argument("--words", type=int, default=8, help="words of an excerpt")
    parser.add_argument("--excerpts", type=int, default=400, help="excerpts of each author to train on")
    options = parser.parse_args(arguments)
    set_seed(options.seed)

    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="right")
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model,
        dtype=torch.float32,
        num_labels=len(LABELS),
        id2label=dict(enumerate(LABELS)),
        label2id={name: index for index, name in enumerate(LABELS)},
    )
    training, held_out = make_data(options.words, options.excerpts)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(options.output / "checkpoints"),
            max_steps=options.steps,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=50,
            learning_rate=options.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, options.steps // 10),
            use_cpu=not torch.accelerator.is_available(),
            logging_steps=max(1, options.steps // 20),
            eval_strategy="steps",
            eval_steps=max(1, options.steps // 4),
            save_strategy="no",
            dataloader_pin_memory=torch.cuda.is_available(),
            report_to="none",
            seed=options.seed,
        ),
        train_dataset=encode(tokenizer, training),
        eval_dataset=encode(tokenizer, held_out),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=accuracy,
    )
    before = trainer.evaluate()["eval_accuracy"]
    trainer.train()
    after = trainer.evaluate()["eval_accuracy"]
    recipe.save(trainer, options.output / "model")
    plot = recipe.save_curves(trainer.state.log_history, options.output, title="Austen or the Bible", per="text")

    classify = pipeline("text-classification", model=str(options.output / "model"))
    for text, _ in (held_out[0], held_out[-1]):
        print(f"{classify(text)[0]['label']:>7}: {text}")
    print(f"held-out accuracy: {before:.3f} before, {after:.3f} after; losses in {plot}")
    return {"before": before, "after": after}


if __name__ == "__main__":
    main()
