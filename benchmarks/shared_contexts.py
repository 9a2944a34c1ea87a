"""The shared-contexts case: log-likelihoods of an evaluation, with and without reading each shared context once."""

from dataclasses import dataclass
from typing import Any

import torch

import recurrent_gemma
from benchmarks.models import FIRST_ORDINARY_ID
from benchmarks.timing import Timing, clock, interleave
from recurrent_gemma.evaluation.language_model import language_model
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM

# Both paths sum tens of log-probabilities in fp32.
_DIFFERENCE = 1e-4

Request = tuple[None, list[int], list[int]]


@dataclass(frozen=True)
class SharedContextsWork:
    """One kind of requests.

    Attributes:
        name: What they are.
        requests: How many.
        timings: ``"shared"``: each context once; ``"plain"``: lm-eval's own path.
        tokens_read: Of each path.
        difference: Largest difference of two log-likelihoods.
    """

    name: str
    requests: int
    timings: dict[str, Timing]
    tokens_read: dict[str, int]
    difference: float


@dataclass(frozen=True)
class SharedContextsResult:
    """What was timed, by kind of requests."""

    model: str
    works: tuple[SharedContextsWork, ...]


def shared_contexts(
    model: RecurrentGemmaForCausalLM,
    name: str,
    *,
    shots: int,
    question: int,
    questions: int,
    subjects: int,
    batch_size: int,
    repeats: int,
) -> SharedContextsResult:
    """Requests as those of MMLU, and with endings of several tokens, by shared contexts and by lm-eval's own path.

    lm-eval's path reads a question once for choices of one token, and once for each longer ending.

    Args:
        model: The model that scores.
        name: What it is, for the report.
        shots: Tokens of the solved examples that the questions of a subject share (5 of them, in MMLU).
        question: Tokens of a question.
        questions: Questions of a subject.
        subjects: Subjects.
        batch_size: Rows of a pass.
        repeats: Rounds.

    Raises:
        ImportError: lm-eval is not installed.
        ValueError: The paths disagree.
    """
    generator = torch.Generator().manual_seed(1)

    def ids(length: int) -> list[int]:
        return torch.randint(FIRST_ORDINARY_ID, model.config.vocab_size, (length,), generator=generator).tolist()

    contexts = []
    for _ in range(subjects):
        shared = ids(shots)
        contexts += [shared + ids(question) for _ in range(questions)]
    letters = [ids(1) for _ in range(4)]
    kinds = {
        f"4 choices of 1 token, {shots} + {question} tokens": [
            (None, c, letter) for c in contexts for letter in letters
        ],
        f"4 endings of 20 tokens, {shots} + {question} tokens": [
            (None, c, ids(20)) for c in contexts for _ in range(4)
        ],
    }
    works = tuple(_compare(model, kind, requests, batch_size, repeats) for kind, requests in kinds.items())
    return SharedContextsResult(name, works)


def _compare(
    model: RecurrentGemmaForCausalLM, kind: str, requests: list[Request], batch_size: int, repeats: int
) -> SharedContextsWork:
    # Requests are tokens already: the tokenizer only has to be there.
    tokenizer: Any = recurrent_gemma.RecurrentGemmaTokenizer.from_pretrained(recurrent_gemma.demo_path())
    paths: dict[str, Any] = {
        path: language_model()(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            shared_contexts=path == "shared",  # type: ignore[call-arg]
        )
        for path in ("shared", "plain")
    }

    def answers(path: str) -> list[tuple[float, bool]]:
        return paths[path]._loglikelihood_tokens(requests, disable_tqdm=True)

    pairs = zip(answers("shared"), answers("plain"), strict=True)
    difference = max(abs(shared[0] - plain[0]) for shared, plain in pairs)
    if model.dtype == torch.float32 and difference > _DIFFERENCE:
        raise ValueError(
            f"shared_contexts: expected equal log-likelihoods by both paths, got {difference:.1g} between."
        )
    read = {path: paths[path].tokens_read for path in paths}
    timings = interleave({path: clock(lambda path=path: answers(path)) for path in paths}, repeats=repeats)
    return SharedContextsWork(kind, len(requests), timings, read, difference)
