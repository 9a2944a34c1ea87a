"""The tasks: token sequences whose answers lie at a known distance behind the question.

Every task is a pure function of a generator, so that the same seed gives the same rows. The answer belongs to the
logits at the very column that asks for it; all other columns carry no loss.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Rows of one task, all (B, L) int64.

    Attributes:
        ids: Input tokens.
        labels: The answer where one is asked for, -100 elsewhere.
        distance: Columns between the question and the token that holds its answer; 0 where nothing is asked.
    """

    ids: Tensor
    labels: Tensor
    distance: Tensor

    @property
    def asked(self) -> Tensor:
        """(B, L) bool, true at the columns that ask."""
        return self.labels != IGNORED


Sampler = Callable[[int, int, Generator], Batch]


@dataclass(frozen=True)
class Task:
    """A task, how it is trained and on what it is tested.

    Attributes:
        chance: Accuracy of the best answer that does not look back; see the task's function.
        train: Makes the rows of training and validation.
        train_length: Columns of those.
        tests: Makes the rows of each test; the first one draws from the distribution of training.
        test_lengths: Columns of those.
        steps: Training stops here at the latest.
        learning_rate: The same for all models.
    """

    name: str
    title: str
    source: str
    vocab_size: int
    chance: float
    train: Sampler
    tests: Mapping[str, Sampler]
    steps: int
    learning_rate: float
    train_length: int = 32
    test_lengths: tuple[int, ...] = (32, 64, 128, 256, 512)


def selective_copying(rows: int, length: int, generator: Generator, *, items: int = 4, values: int = 8) -> Batch:
    """Values strewn among one noise token, to be repeated in order at the end (arXiv 2312.00752, section 4.1).

    Tokens: 0 noise, 1 the question, then the values. Chance: one of the values.
    """
    content = length - items
    places = _distinct(rows, content, items, generator)
    answers = torch.randint(2, 2 + values, (rows, items), generator=generator)
    ids = torch.zeros(rows, length, dtype=torch.int64).scatter_(1, places, answers)
    ids[:, content:] = 1
    return _ask(ids, torch.arange(content, length).expand(rows, -1), answers, places)


def induction_heads(rows: int, length: int, generator: Generator, *, vocab: int = 16) -> Batch:
    """What followed the trigger, at the trigger's second time (arXiv 2209.11895; the form of 2312.00752, section 4.1).

    Tokens: 0 the trigger, all others are noise and value alike. Chance: one of those.
    """
    ids = torch.randint(1, vocab, (rows, length), generator=generator)
    trigger = torch.randint(0, length - 2, (rows, 1), generator=generator)
    ids.scatter_(1, trigger, 0)
    ids[:, -1] = 0
    return _ask(ids, torch.full((rows, 1), length - 1), ids.gather(1, trigger + 1), trigger + 1)


def associative_recall(
    rows: int, length: int, generator: Generator, *, pairs: int = 4, keys: int = 8, values: int = 8
) -> Batch:
    """Several keys with their values, then each key once more at a random column (MQAR of arXiv 2312.04927).

    Tokens: 0 filler, then keys, then values, none twice in a row. Chance: one of the values that the row holds.
    """
    chosen = 1 + _distinct(rows, keys, pairs, generator, in_order=False)
    answers = 1 + keys + _distinct(rows, values, pairs, generator, in_order=False)
    ids = torch.zeros(rows, length, dtype=torch.int64)
    ids[:, : 2 * pairs] = torch.stack((chosen, answers), dim=2).flatten(1)
    questions = 2 * pairs + _distinct(rows, length - 2 * pairs, pairs, generator, in_order=False)
    ids.scatter_(1, questions, chosen)
    return _ask(ids, questions, answers, (2 * torch.arange(pairs) + 1).expand(rows, -1))


def flip_flop(rows: int, length: int, generator: Generator, *, ignored: float = 0.8) -> Batch:
    """Write, read and ignore, each with a bit; a read's bit is the last one written (arXiv 2306.00946, section 3).

    Tokens: 0 and 1 the bits, 2 write, 3 read, 4 ignore. The first instruction writes, the last one reads, the others
    are ``ignore`` with probability ``ignored``, else one of the two others. The question is the read instruction; its
    bit follows in the next column, as in a language model. Chance: one of two bits.
    """
    steps = length // 2
    draw = torch.rand(rows, steps, generator=generator)
    instructions = torch.where(draw < ignored, 4, torch.where(draw < (1 + ignored) / 2, 2, 3))
    instructions[:, 0], instructions[:, -1] = 2, 3
    bits = torch.randint(0, 2, (rows, steps), generator=generator)
    written = torch.where(instructions == 2, torch.arange(steps), 0).cummax(dim=1).values
    reads = instructions == 3
    bits = torch.where(reads, bits.gather(1, written), bits)
    ids = torch.stack((instructions, bits), dim=2).flatten(1)
    columns = 2 * torch.arange(steps)
    labels, distance = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    labels[:, ::2] = torch.where(reads, bits, IGNORED)
    distance[:, ::2] = torch.where(reads, columns - (2 * written + 1), 0)
    return Batch(ids, labels, distance)


def last_marker(
    rows: int, length: int, generator: Generator, *, head: int = 8, markers: int = 3, values: int = 16, times: int = 4
) -> Batch:
    """The value after the last marker; one to ``markers`` of them stand in the first ``head`` columns, noise after.

    Asked ``times`` times in the second half, always in the last column. Tokens: 0 marker, 1 the question, then values,
    which also make up the noise. Chance: one of the values.
    """
    ids = torch.randint(2, 2 + values, (rows, length), generator=generator)
    # Every other column, so that a marker's value is never a marker.
    places = 2 * _distinct(rows, head // 2, markers, generator)
    count = torch.randint(1, markers + 1, (rows, 1), generator=generator)
    places = places.where(torch.arange(markers) < count, places[:, :1])
    ids.scatter_(1, places, 0)
    last = places.amax(dim=1, keepdim=True)
    answer = ids.gather(1, last + 1)
    half = length // 2
    questions = half + _distinct(rows, length - half - 1, times - 1, generator)
    questions = torch.cat((questions, torch.full((rows, 1), length - 1)), dim=1)
    ids.scatter_(1, questions, 1)
    return _ask(ids, questions, answer.expand(-1, times), last + 1)


def parity(rows: int, length: int, generator: Generator, *, only_last: bool = False) -> Batch:
    """Whether the number of ones so far is odd, asked at every column, or at the last one (arXiv 2411.12537).

    Tokens: the bits, which are the answers as well. Every column counts, so the distance is that to the first one.
    Chance: one of two bits.
    """
    ids = torch.randint(0, 2, (rows, length), generator=generator)
    labels = ids.cumsum(dim=1) % 2
    if only_last:
        labels[:, :-1] = IGNORED
    distance = torch.arange(length).expand(rows, -1).masked_fill(labels == IGNORED, 0)
    return Batch(ids, labels, distance)


def _distinct(rows: int, below: int, count: int, generator: Generator, *, in_order: bool = True) -> Tensor:
    """(rows, count) integers in [0, below), none twice in a row."""
    chosen = torch.rand(rows, below, generator=generator).argsort(dim=1)[:, :count]
    return chosen.sort(dim=1).values if in_order else chosen


def _ask(ids: Tensor, questions: Tensor, answers: Tensor, evidence: Tensor) -> Batch:
    labels = torch.full_like(ids, IGNORED).scatter_(1, questions, answers)
    distance = torch.zeros_like(ids).scatter_(1, questions, questions - evidence)
    return Batch(ids, labels, distance)


TASKS = {
    task.name: task
    for task in (
        Task(
            "marker",
            "last marker's value",
            "this package",
            vocab_size=18,
            chance=1 / 16,
            train=last_marker,
            tests={"": last_marker},
            steps=1000,
            learning_rate=3e-3,
        ),
        Task(
            "induction",
            "induction heads",
            "arXiv 2209.11895, 2312.00752",
            vocab_size=16,
            chance=1 / 15,
            train=induction_heads,
            tests={"": induction_heads},
            steps=800,
            learning_rate=3e-3,
        ),
        Task(
            "copying",
            "selective copying",
            "arXiv 2312.00752",
            vocab_size=10,
            chance=1 / 8,
            train=selective_copying,
            tests={"": selective_copying},
            steps=1200,
            learning_rate=3e-3,
        ),
        Task(
            "recall",
            "multi-query associative recall",
            "arXiv 2312.04927",
            vocab_size=17,
            chance=1 / 4,
            train=associative_recall,
            tests={"": associative_recall},
            steps=1500,
            learning_rate=3e-3,
        ),
        Task(
            "flip-flop",
            "flip-flop language",
            "arXiv 2306.00946",
            vocab_size=5,
            chance=1 / 2,
            train=flip_flop,
            tests={"ignore 80 %": flip_flop, "ignore 98 %": partial(flip_flop, ignored=0.98)},
            steps=400,
            learning_rate=3e-3,
        ),
        Task(
            "parity",
            "parity",
            "arXiv 2411.12537",
            vocab_size=2,
            chance=1 / 2,
            train=parity,
            tests={"": partial(parity, only_last=True)},
            steps=800,
            learning_rate=1e-2,
        ),
    )
}
