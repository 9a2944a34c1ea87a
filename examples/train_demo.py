"""Make the demo checkpoint that the package ships: corpus, tokenizer, training, export, evaluation.

    python examples/train_demo.py                         # everything; what is done already is skipped
    python examples/train_demo.py train --time-limit 120  # named steps; training goes on where it stopped
    python examples/train_demo.py export evaluate

Needs a Debian system (apt-get, dpkg-deb) for the corpus, and an hour or two on two cores for the training.
"""

import json
import math
import shutil
import time
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import demo_card
import demo_corpus
import numpy as np
import torch
import typer
from demo_baselines import KneserNey, copied_share
from demo_tokenizer import train_tokenizer
from torch.utils.data import Dataset
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM
from recurrent_gemma.tokenization import RecurrentGemmaTokenizer

HERE = Path(__file__).resolve().parent
SEED = 0
VOCAB_SIZE = 2500
WINDOW = 256
BOS = "<bos>"
PROMPTS = ("In the beginning", "Elizabeth was", "And the king said")


class Step(str, Enum):
    """Steps in their order; each reads what the ones before it wrote."""

    corpus = "corpus"
    tokenizer = "tokenizer"
    train = "train"
    export = "export"
    evaluate = "evaluate"


class TokenWindows(Dataset):
    """Consecutive windows of one stream of documents; positions restart at each BOS, which is never a target."""

    def __init__(self, stream: np.ndarray, bos_token_id: int, length: int = WINDOW) -> None:
        self.windows = torch.from_numpy(stream[: len(stream) // length * length].astype(np.int64)).view(-1, length)
        self.bos_token_id = bos_token_id

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = self.windows[index]
        starts = ids == self.bos_token_id
        column = torch.arange(len(ids))
        position_ids = column - torch.where(starts, column, 0).cummax(0).values
        return {"input_ids": ids, "position_ids": position_ids, "labels": ids.masked_fill(starts, -100)}


class Progress:
    """Learning-rate factor: linear warm-up, then a cosine to 0 over what is used up of the budget.

    ``LambdaLR`` keeps the attributes in its own state, so a resumed run knows the time that was spent before.
    """

    def __init__(self, warmup_steps: int) -> None:
        self.warmup_steps = warmup_steps
        self.elapsed_s = 0.0
        self.spent = 0.0

    def __call__(self, step: int) -> float:
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        return warmup * 0.5 * (1 + math.cos(math.pi * min(self.spent, 1.0)))


class Budget(TrainerCallback):
    """Ends training when the steps or the minutes are spent; the schedule follows whichever end is nearer."""

    def __init__(self, progress: Progress, max_steps: int, time_limit_min: float | None) -> None:
        self.progress = progress
        self.max_steps = max_steps
        self.time_limit_s = math.inf if time_limit_min is None else 60 * time_limit_min

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = time.monotonic() - self.progress.elapsed_s

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress.elapsed_s = time.monotonic() - self.began
        self.progress.spent = max(state.global_step / self.max_steps, self.progress.elapsed_s / self.time_limit_s)
        if self.progress.spent >= 1:
            control.should_training_stop = control.should_save = True


def make_corpus(work: Path, sources: list[Path]) -> None:
    """Write ``train.txt`` and ``heldout.txt``: documents one after the other, each behind a BOS."""
    root = demo_corpus.fetch(work, sources)
    documents = list(demo_corpus.bible_chapters(demo_corpus.read_bible((root / demo_corpus.BIBLE_FILE).read_bytes())))
    for novel in demo_corpus.read_austen((root / demo_corpus.AUSTEN_FILE).read_bytes()):
        documents.extend(demo_corpus.austen_chapters(novel))
    for name, part in zip(("train", "heldout"), demo_corpus.split(documents), strict=True):
        (work / f"{name}.txt").write_text("".join(BOS + document for document in part), encoding="utf-8")


def read_documents(path: Path) -> list[str]:
    """Documents of a file that :func:`make_corpus` wrote."""
    return path.read_text(encoding="utf-8").split(BOS)[1:]


def encode(tokenizer: RecurrentGemmaTokenizer, documents: list[str]) -> list[list[int]]:
    """Token ids of each document, from BOS to EOS."""
    return [[*ids, tokenizer.eos_token_id] for ids in tokenizer(documents).input_ids]


def make_tokenizer(work: Path) -> None:
    """Write ``tokenizer/`` and ``tokens.npy``, the training documents as one stream of ids."""
    documents = read_documents(work / "train.txt")
    tokenizer = train_tokenizer(documents, VOCAB_SIZE)
    tokenizer.save_pretrained(work / "tokenizer")
    stream = [token for ids in encode(tokenizer, documents) for token in ids]
    np.save(work / "tokens.npy", np.array(stream, dtype=np.uint16))


def demo_config(tokenizer: RecurrentGemmaTokenizer) -> RecurrentGemmaConfig:
    """Griffin with 5.4 million parameters: two recurrent blocks to one of attention, as published."""
    return RecurrentGemmaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=2 * 768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=1,
        lru_width=256,
        attention_window_size=128,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices and convolutions; none on norms, biases and the recurrence's ``recurrent_param``."""
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[parameter.ndim > 1 and "bias" not in name].append(parameter)
    return [{"params": groups[True], "weight_decay": weight_decay}, {"params": groups[False], "weight_decay": 0.0}]


def train(work: Path, options: dict[str, Any]) -> None:
    """Train into ``checkpoints/``, from the last one there on, and write the result to ``model/``."""
    tokenizer = RecurrentGemmaTokenizer.from_pretrained(work / "tokenizer")
    set_seed(SEED)
    model = RecurrentGemmaForCausalLM(demo_config(tokenizer))
    progress = Progress(options["warmup_steps"])
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=options["learning_rate"], betas=(0.9, 0.95))
    arguments = TrainingArguments(
        output_dir=str(work / "checkpoints"),
        per_device_train_batch_size=options["batch_size"],
        max_steps=options["max_steps"],
        max_grad_norm=1.0,
        bf16=options["bf16"],
        use_cpu=not torch.cuda.is_available(),
        save_steps=options["save_steps"],
        save_total_limit=2,
        logging_steps=20,
        report_to="none",
        seed=SEED,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        data_collator=default_data_collator,
        train_dataset=TokenWindows(np.load(work / "tokens.npy"), tokenizer.bos_token_id),
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, progress)),
        callbacks=[Budget(progress, options["max_steps"], options["time_limit"])],
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(arguments.output_dir))
    trainer.save_model(str(work / "model"))
    record = {
        "steps": trainer.state.global_step,
        "batch_size": options["batch_size"],
        "window": WINDOW,
        "tokens_seen": trainer.state.global_step * options["batch_size"] * WINDOW,
        "learning_rate": options["learning_rate"],
        "minutes": round(progress.elapsed_s / 60, 1),
        "last_training_loss": next((log["loss"] for log in reversed(trainer.state.log_history) if "loss" in log), None),
        "threads": torch.get_num_threads(),
        "bf16_autocast": options["bf16"],
        "seed": SEED,
    }
    (work / "model" / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def export(work: Path, output: Path) -> None:
    """Write weights in bfloat16, configs, tokenizer and held-out text to ``output``."""
    model = RecurrentGemmaForCausalLM.from_pretrained(work / "model", dtype=torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=2, eos_token_id=1, pad_token_id=0, do_sample=True, temperature=0.8, top_p=0.95
    )
    model.config.use_cache = True  # the Trainer turned it off
    model.save_pretrained(output)
    shutil.copytree(work / "tokenizer", output, dirs_exist_ok=True)
    shutil.copy(work / "heldout.txt", output)


@torch.inference_mode()
def perplexity(model: PreTrainedModel, documents: list[list[int]]) -> float:
    """exp of the mean negative log-likelihood of every token but BOS, each document read in one pass from its start."""
    total = 0.0
    for ids in documents:
        row = torch.tensor([ids])
        total += model(input_ids=row, labels=row, use_cache=False).loss.item() * (len(ids) - 1)
    return math.exp(total / sum(len(ids) - 1 for ids in documents))


def sample(model: PreTrainedModel, tokenizer: RecurrentGemmaTokenizer, prompt: str, seed: int, length: int) -> str:
    """Prompt and continuation, drawn as the shipped generation config says."""
    set_seed(seed)
    inputs = tokenizer(prompt, return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=length)
    return tokenizer.decode(tokens[0], skip_special_tokens=True)


def evaluate(work: Path, output: Path) -> None:
    """Measure what :func:`export` wrote, in fp32, and write ``evaluation.json`` and the model card beside it."""
    model = RecurrentGemmaForCausalLM.from_pretrained(output, dtype=torch.float32).eval()
    tokenizer = RecurrentGemmaTokenizer.from_pretrained(output)
    training = read_documents(work / "train.txt")
    texts = read_documents(output / "heldout.txt")
    held_out = encode(tokenizer, texts)
    encoded_training = encode(tokenizer, training)
    targets = sum(len(ids) - 1 for ids in held_out)
    ours = perplexity(model, held_out)
    baselines = {
        name: KneserNey(order, len(tokenizer), encoded_training).perplexity(held_out)
        for name, order in (("unigram", 1), ("trigram", 3), ("fivegram", 5))
    }
    drawn = [(prompt, sample(model, tokenizer, prompt, seed, 200)) for prompt in PROMPTS for seed in range(10)]
    results = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "training": json.loads((work / "model" / "training.json").read_text(encoding="utf-8")),
        "vocab_size": len(tokenizer),
        "training_documents": len(training),
        "training_tokens": sum(map(len, encoded_training)),
        "heldout_documents": len(texts),
        "heldout_tokens": targets,
        "heldout_perplexity": ours,
        "heldout_bits_per_character": math.log2(ours) * targets / sum(map(len, texts)),
        "baseline_perplexity": baselines,
        "copied_8gram_share": copied_share((text.removeprefix(prompt) for prompt, text in drawn), training),
        "heldout_8gram_share": copied_share(texts, training),
        "samples": [text for _, text in drawn[::10]],
    }
    (output / "evaluation.json").write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (output / "README.md").write_text(demo_card.render(results), encoding="utf-8")
    typer.echo(json.dumps({k: v for k, v in results.items() if k != "samples"}, indent=2))


def main(
    steps: Annotated[list[Step] | None, typer.Argument(help="Steps to run. Default: all that are not done.")] = None,
    work: Annotated[Path, typer.Option(help="Folder for corpus, tokens and checkpoints.")] = HERE / "work",
    output: Annotated[Path, typer.Option(help="Where the checkpoint goes.")] = HERE.parent / "recurrent_gemma" / "demo",
    source: Annotated[
        list[Path] | None, typer.Option(help="A .deb of the corpus, or the folder it was unpacked to.")
    ] = None,
    max_steps: Annotated[int, typer.Option(min=1, help="Optimizer steps in all, earlier runs included.")] = 2400,
    time_limit: Annotated[float | None, typer.Option(help="Minutes of training in all, earlier runs included.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows of 256 tokens a step.")] = 8,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-3,
    warmup_steps: Annotated[int, typer.Option(min=1, help="Steps of linear warm-up.")] = 200,
    save_steps: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 200,
    bf16: Annotated[bool, typer.Option(help="Train under bfloat16 autocast.")] = True,
) -> None:
    """Make the demo checkpoint that the package ships: corpus, tokenizer, training, export, evaluation.

    A run that was stopped goes on where it was.
    """
    work.mkdir(parents=True, exist_ok=True)
    options = {
        "max_steps": max_steps,
        "time_limit": time_limit,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "warmup_steps": warmup_steps,
        "save_steps": save_steps,
        "bf16": bf16,
    }
    actions = {
        Step.corpus: (lambda: make_corpus(work, source or []), work / "heldout.txt"),
        Step.tokenizer: (lambda: make_tokenizer(work), work / "tokens.npy"),
        Step.train: (lambda: train(work, options), work / "model" / "training.json"),
        Step.export: (lambda: export(work, output), None),
        Step.evaluate: (lambda: evaluate(work, output), None),
    }
    for step, (action, product) in actions.items():
        if step in steps if steps else product is None or not product.exists():
            typer.echo(f"== {step.value}")
            action()


if __name__ == "__main__":
    typer.run(main)
