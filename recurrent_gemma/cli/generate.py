"""``recurrent-gemma generate``: continues a prompt, token by token."""

import contextlib
import secrets
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, TextGenerationPipeline, pipeline, set_seed

from recurrent_gemma.cli.checkpoint import Checkpoint, load_tokenizer, open_checkpoint
from recurrent_gemma.cli.errors import CommandError, ExitCode, reported_as
from recurrent_gemma.cli.session import Session
from recurrent_gemma.cli.streaming import Meter, TextPieceStreamer, write_out


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; ``None`` leaves a setting to ``pipeline("text-generation")`` and the checkpoint."""

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    greedy: bool = False

    def generate_kwargs(self) -> dict[str, Any]:
        """The settings as ``generate`` takes them."""
        given = {name: getattr(self, name) for name in ("max_new_tokens", "temperature", "top_p", "top_k")}
        return {"do_sample": not self.greedy} | {name: value for name, value in given.items() if value is not None}


def generate(
    prompt: str | None,
    *,
    model: Path,
    sampling: Sampling,
    seed: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    session_file: Path | None = None,
    stats: bool = False,
) -> None:
    """Write the prompt and its continuation to stdout, the continuation as its tokens come.

    The text is that of ``pipeline("text-generation", model=model)`` after ``set_seed(seed)`` with the same settings.
    With a session it is that of all the text so far, of which only the new tokens are read.

    Args:
        prompt: Text to continue; ``None`` or empty only goes on with a session's text.
        model: Checkpoint directory.
        sampling: How tokens are chosen.
        seed: Seed of the random numbers; ``None`` draws one and names it on stderr.
        device: Where to run; ``None`` means what ``pipeline`` picks: an accelerator if there is one.
        dtype: Dtype of the weights; ``None`` means the checkpoint's.
        session_file: Where the text so far is, if it exists, and will be.
        stats: Whether to write tokens, their rate and the state's bytes to stderr at the end.

    Raises:
        CommandError: The checkpoint is missing, of another architecture, or broken; the session cannot go on.
    """
    checkpoint = open_checkpoint(model)
    session = Session.open(session_file, checkpoint.config)
    if prompt is None and not session.ids:
        raise CommandError("Missing argument 'PROMPT'.", ExitCode.USAGE)
    if not prompt and session.ids and not session.unread:
        raise CommandError(f"{session_file}: its text has ended; give a PROMPT to go on with", ExitCode.USAGE)
    prompt = prompt or ""
    text_generation = load_pipeline(checkpoint, device, dtype)
    session.expect_runs_on(text_generation.model)
    tokenizer: Any = text_generation.tokenizer

    seed_sampling(seed, sampling)
    write_out(prompt)
    streamer = Meter(session.cache, TextPieceStreamer(tokenizer, write_out))
    if session_file is None:
        cache = {"past_key_values": session.cache} if stats else {}
        text_generation(prompt, streamer=streamer, **cache, **sampling.generate_kwargs())
    else:
        # The tokenizer's BOS stands where the text begins.
        ids = tokenizer(prompt, add_special_tokens=not session.ids).input_ids
        session.extend(
            ids, text_generation, eos_ids(text_generation.model), streamer=streamer, **sampling.generate_kwargs()
        )
        session.save()
    write_out("\n")
    if stats:
        streamer.report()


def load_pipeline(checkpoint: Checkpoint, device: str | None, dtype: str | None) -> TextGenerationPipeline:
    """The pipeline of a checkpoint.

    Raises:
        CommandError: Its tokenizer or its weights do not load.
    """
    tokenizer = load_tokenizer(checkpoint)
    # Not left to `pipeline`, which hides why a checkpoint does not load and retries in float32.
    with reported_as(ExitCode.BROKEN, f"{checkpoint.directory}: the weights do not load"):
        weights = AutoModelForCausalLM.from_pretrained(
            checkpoint.directory, dtype=dtype or "auto", local_files_only=True
        )
    return pipeline("text-generation", model=weights, tokenizer=tokenizer, device=device)


def seed_sampling(seed: int | None, sampling: Sampling) -> None:
    """Seed the random numbers; without a seed, draw one and name it on stderr if it will matter."""
    if seed is None and not sampling.greedy:
        seed = secrets.randbelow(2**32)
        print(f"seed: {seed}", file=sys.stderr)
    if seed is not None:
        set_seed(seed)


def eos_ids(model: Any) -> list[int]:
    """The tokens that end a text."""
    ids = model.generation_config.eos_token_id
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings and progress bars of the libraries in this block."""
    verbosity = transformers.logging.get_verbosity()
    progress_bar = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if progress_bar:
            transformers.logging.enable_progress_bar()


def check_device(name: str) -> None:
    """Check that a tensor can live on a device.

    Raises:
        ValueError: The name is not a device's, or this machine or this PyTorch has no such device.
    """
    try:
        torch.zeros(1, device=name).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"expected a device of this machine such as 'cpu' or 'cuda:0', got {name!r}") from error


__all__ = ["Sampling", "check_device", "eos_ids", "generate", "load_pipeline", "quiet", "seed_sampling"]
