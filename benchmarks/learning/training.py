"""One run: train a contestant on a task at one length, test it at longer ones."""

import math
import time
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from benchmarks.learning.models import REACH, Contestant, build, parameter_count, signed_recurrence
from benchmarks.learning.tasks import IGNORED, Batch, Sampler, Task
from recurrent_gemma.modeling import RecurrentGemmaCache, RecurrentGemmaForCausalLM

BATCH_ROWS = 32
TEST_ROWS = 256
WARMUP_STEPS = 50
VALIDATE_EVERY = 50
# Validation accuracy at which a run has learned its task.
SOLVED = 0.99
# Share of the steps in which the learning rate falls to 0, at the end or once the task is solved.
COOLDOWN = 0.2
WEIGHT_DECAY = 0.01
MAX_GRADIENT_NORM = 1.0
# Tokens of one forward pass in a test.
_TEST_TOKENS = 1 << 15


@dataclass(frozen=True)
class Score:
    """Accuracy at one length of one test.

    Attributes:
        accuracy: Share of right answers.
        beyond: The same among answers farther back than ``REACH``; None where there are none.
        answers: Number of them, and of those beyond.
    """

    test: str
    length: int
    accuracy: float
    beyond: float | None
    answers: tuple[int, int]


@dataclass(frozen=True)
class Run:
    """What one run found.

    Attributes:
        steps: Steps taken, cooldown included.
        solved_at: Step at which validation first reached ``SOLVED``; None if it never did.
        loss: Of the last training batch, in nats an answer.
        validation: (step, accuracy at the training length) pairs.
    """

    task: str
    model: str
    seed: int
    parameters: int
    learning_rate: float
    steps: int
    solved_at: int | None
    seconds: float
    cpu_seconds: float
    loss: float
    validation: list[tuple[int, float]]
    scores: list[Score]


def run(
    task: Task,
    contestant: Contestant,
    *,
    seed: int,
    steps: int | None = None,
    learning_rate: float | None = None,
    device: str = "cpu",
) -> Run:
    """Train and test.

    Args:
        task: The task.
        contestant: The model.
        seed: Of the weights and of the training rows. Validation and tests have the same rows for every run.
        steps: Instead of the task's.
        learning_rate: Instead of the task's.
        device: Where the model computes; rows are drawn on the CPU, so that they are the same everywhere.
    """
    steps = task.steps if steps is None else steps
    learning_rate = task.learning_rate if learning_rate is None else learning_rate
    started, cpu_started = time.perf_counter(), time.process_time()
    model = build(contestant, task, seed=seed).to(device)
    with signed_recurrence(contestant.signed):
        validation, solved_at, taken, loss = _train(model, task, contestant, seed, steps, learning_rate)
        scores = [
            _score(model, name, sampler, length) for name, sampler in task.tests.items() for length in task.test_lengths
        ]
    return Run(
        task=task.name,
        model=contestant.name,
        seed=seed,
        parameters=parameter_count(contestant, task),
        learning_rate=learning_rate,
        steps=taken,
        solved_at=solved_at,
        seconds=round(time.perf_counter() - started, 1),
        cpu_seconds=round(time.process_time() - cpu_started, 1),
        loss=round(loss, 4),
        validation=validation,
        scores=scores,
    )


def _train(
    model: RecurrentGemmaForCausalLM, task: Task, contestant: Contestant, seed: int, steps: int, learning_rate: float
) -> tuple[list[tuple[int, float]], int | None, int, float]:
    generator = Generator().manual_seed(seed)
    held_out = task.train(TEST_ROWS, task.train_length, Generator().manual_seed(-1))
    matrices = [p for name, p in model.named_parameters() if p.ndim > 1 and not name.endswith("bias")]
    others = [p for name, p in model.named_parameters() if p.ndim == 1 or name.endswith("bias")]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
    cooldown = math.ceil(COOLDOWN * steps)
    last, solved_at, step = steps, None, 0
    validation: list[tuple[int, float]] = []
    while step < last:
        scale = min(1.0, (step + 1) / WARMUP_STEPS, (last - step) / cooldown)
        for group in optimizer.param_groups:
            group["lr"] = scale * learning_rate
        batch = task.train(BATCH_ROWS, task.train_length, generator)
        model.train()
        optimizer.zero_grad()
        loss = training_loss(model, batch, contestant)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()
        step += 1
        if step % VALIDATE_EVERY == 0 or step == last:
            accuracy = _accuracy(_right(model, held_out))
            validation.append((step, round(accuracy, 4)))
            if accuracy >= SOLVED and solved_at is None:
                solved_at = step
                last = min(last, step + cooldown)
    return validation, solved_at, step, loss.item()


def training_loss(model: RecurrentGemmaForCausalLM, batch: Batch, contestant: Contestant) -> Tensor:
    ids, labels = batch.ids.to(model.device), batch.labels.to(model.device)
    if not contestant.segment:
        logits = model(input_ids=ids, use_cache=False).logits
    else:
        cache = RecurrentGemmaCache(model.config)
        parts = []
        for part in ids.split(contestant.segment, dim=1):
            parts.append(model(input_ids=part, past_key_values=cache, use_cache=True).logits)
            if contestant.cut:
                cache.detach()
        logits = torch.cat(parts, dim=1)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


def _score(model: RecurrentGemmaForCausalLM, name: str, sampler: Sampler, length: int) -> Score:
    batch = sampler(TEST_ROWS, length, Generator().manual_seed(length))
    right, far = _right(model, batch), (batch.distance > REACH)[batch.asked]
    beyond = round(_accuracy(right[far]), 4) if far.any() else None
    return Score(name, length, round(_accuracy(right), 4), beyond, (right.numel(), int(far.sum())))


@torch.no_grad()
def _right(model: RecurrentGemmaForCausalLM, batch: Batch) -> Tensor:
    """(answers,) bool: which answers of the batch the model gives."""
    model.eval()
    rows = max(1, _TEST_TOKENS // batch.ids.shape[1])
    parts = [
        model(input_ids=ids.to(model.device), use_cache=False).logits.argmax(dim=-1).cpu()
        for ids in batch.ids.split(rows)
    ]
    return (torch.cat(parts) == batch.labels)[batch.asked]


def _accuracy(right: Tensor) -> float:
    return right.double().mean().item()
