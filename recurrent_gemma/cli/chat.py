"""``recurrent-gemma chat``: a conversation whose turns go on from the state, whatever was said before."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

import recurrent_gemma
from recurrent_gemma.cli.checkpoint import open_checkpoint
from recurrent_gemma.cli.errors import CommandError, ExitCode, reported_as
from recurrent_gemma.cli.generate import Sampling, eos_ids, load_pipeline, seed_sampling
from recurrent_gemma.cli.session import Session
from recurrent_gemma.cli.streaming import Meter, TextPieceStreamer, write_out

_EXIT = "/exit"


def chat(
    *,
    model: Path,
    sampling: Sampling,
    seed: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    session_file: Path | None = None,
    stats: bool = False,
) -> None:
    """Read turns from stdin, a line each, and write the answers to stdout as their tokens come.

    Args:
        model: Checkpoint directory.
        sampling: How tokens are chosen.
        seed: Seed of the random numbers; ``None`` draws one and names it on stderr.
        device: Where to run; ``None`` means an accelerator if there is one.
        dtype: Dtype of the weights; ``None`` means the checkpoint's.
        session_file: Where the conversation so far is, if it exists; saved after every answer.
        stats: Whether to write tokens, their rate and the state's bytes to stderr at the end.

    Raises:
        CommandError: The checkpoint is missing, of another architecture, broken, or not made for chat; the session
            cannot go on.
    """
    checkpoint = open_checkpoint(model)
    session = Session.open(session_file, checkpoint.config)
    text_generation = load_pipeline(checkpoint, device, dtype)
    session.expect_runs_on(text_generation.model)
    turns = ChatTurns(text_generation.tokenizer, model)
    if model.samefile(recurrent_gemma.demo_path()):
        print("This model is not tuned for chat: it only continues the text.", file=sys.stderr)
    seed_sampling(seed, sampling)

    stop_ids = [*eos_ids(text_generation.model), turns.end_id]
    meter: Meter | None = None
    for text in _lines():
        streamer = TextPieceStreamer(text_generation.tokenizer, write_out)
        meter = meter or Meter(session.cache, streamer)
        meter.streamer = streamer
        ids = turns.later(text) if session.ids else turns.first(text)
        with _stopped_by_interrupt() as interrupted:
            session.extend(
                ids,
                text_generation,
                stop_ids,
                streamer=meter,
                stopping_criteria=StoppingCriteriaList([interrupted]),
                **sampling.generate_kwargs(),
            )
            session.save()
        write_out("\n")
    if stats and meter is not None:
        meter.report()


class ChatTurns:
    """What the model reads for each turn of the user's, cut out of the tokenizer's own chat template.

    All of them, with the answers between, are the template of the whole conversation: a later turn begins with what the
    template puts behind an answer. It depends on nothing that was said, so it is cut out of a conversation of one word
    each.

    Args:
        tokenizer: Has the template.
        directory: Where it is from, for messages.

    Attributes:
        end_id: The token behind an answer.

    Raises:
        CommandError: There is no template, or its turns cannot be told apart.
    """

    def __init__(self, tokenizer: Any, directory: Path) -> None:
        self._tokenizer = tokenizer
        question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
        self._past = [question, answer]
        with reported_as(ExitCode.BROKEN, f"{directory}: the tokenizer's chat template cannot be used"):
            self._read = self._render([question]) + "b"
            goes_on = self._render([*self._past, question]).startswith(self._read)
            self.end_id: int = next(iter(self.later("a")), -1)
        end = tokenizer.added_tokens_decoder.get(self.end_id)
        if not goes_on or end is None or not end.special:
            raise CommandError(
                f"{directory}: expected a chat template that puts a special token behind an answer and leaves what is "
                "before it as it was, got another; chat needs the tokenizer of a model for chat",
                ExitCode.BROKEN,
            )

    def first(self, text: str) -> list[int]:
        """Tokens of the first turn, up to where its answer begins."""
        return self._encode(self._render([{"role": "user", "content": text}]))

    def later(self, text: str) -> list[int]:
        """Tokens from the end of an answer to where the next one begins."""
        return self._encode(self._render([*self._past, {"role": "user", "content": text}])[len(self._read) :])

    def _render(self, messages: list[dict[str, str]]) -> str:
        return self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False).input_ids


class _Interrupted(StoppingCriteria):
    """Ends a generation between two tokens once it is set: tokens and state then belong together."""

    def __init__(self) -> None:
        self.is_set = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        return torch.full((input_ids.shape[0],), self.is_set, dtype=torch.bool, device=input_ids.device)


@contextlib.contextmanager
def _stopped_by_interrupt() -> Iterator[_Interrupted]:
    """Ctrl-C sets the criterion in this block; a second one does what it did before."""
    interrupted = _Interrupted()
    before = signal.getsignal(signal.SIGINT)

    def interrupt(*_: Any) -> None:
        interrupted.is_set = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _lines() -> Iterator[str]:
    """What the user says, until the end of the input."""
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    while True:
        if on_terminal:
            write_out("> ")  # input() would write it to stderr
        try:
            line = input().strip()
        except (EOFError, KeyboardInterrupt):
            if on_terminal:
                write_out("\n")
            return
        if line == _EXIT:
            return
        if line:
            yield line


__all__ = ["ChatTurns", "chat"]
