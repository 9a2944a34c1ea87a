"""The demo model, and its log-likelihoods computed from one forward pass a sequence."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import recurrent_gemma
from recurrent_gemma import RecurrentGemmaForCausalLM, RecurrentGemmaTokenizer
from recurrent_gemma.evaluation.language_model import language_model

# Sums of log-probabilities over tens of tokens by two routes in fp32 (the project's promise).
TOLERANCE = 1e-4


@functools.cache
def demo() -> tuple[Any, Any]:
    """The demo model in fp32 and its tokenizer."""
    directory = recurrent_gemma.demo_path()
    model = RecurrentGemmaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return model, RecurrentGemmaTokenizer.from_pretrained(directory)


def held_out(characters: int, begin: int = 0) -> str:
    """Text that the demo model has not been trained on."""
    text = (recurrent_gemma.demo_path() / "heldout.txt").read_text()
    return text[begin : begin + characters]


def lm(**options: Any) -> Any:
    """lm-eval's model around the demo model."""
    model, tokenizer = demo()
    return language_model()(pretrained=model, tokenizer=tokenizer, **{"batch_size": 4, **options})


def requests(kind: str, calls: list[tuple[Any, ...]]) -> list[Any]:
    """lm-eval's requests of one kind."""
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, call, index) for index, call in enumerate(calls)]


@torch.no_grad()
def log_likelihood(context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Sum of the log-probabilities of ``continuation``, from one pass's logits; whether it is the greedy one."""
    model, _ = demo()
    logits = model(torch.tensor([context + continuation])).logits[0, len(context) - 1 : -1].double()
    tokens = torch.tensor(continuation)
    chosen = logits.log_softmax(dim=-1).gather(1, tokens[:, None])
    return chosen.sum().item(), bool((logits.argmax(dim=-1) == tokens).all())


@contextmanager
def recorded_rows() -> Iterator[list[list[int]]]:
    """Ids of every row that the demo model reads, without pads, pass by pass."""
    model, _ = demo()
    rows: list[list[int]] = []

    def record(module: Any, args: Any, kwargs: Any) -> None:
        ids, mask = kwargs["input_ids"] if "input_ids" in kwargs else args[0], kwargs.get("attention_mask")
        for index, row in enumerate(ids):
            valid = slice(None) if mask is None else mask[index, -len(row) :].bool()
            rows.append(row[valid].tolist())

    handle = model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()
