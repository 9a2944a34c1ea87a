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
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline, set_seed

from recurrent_gemma.cli.checkpoint import open_checkpoint, require_file
from recurrent_gemma.cli.errors import ExitCode, reported_as
from recurrent_gemma.cli.streaming import TextPieceStreamer


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
    prompt: str,
    *,
    model: Path,
    sampling: Sampling,
    seed: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> None:
    """Write the prompt and its continuation to stdout, the continuation as its tokens come.

    The text is that of ``pipeline("text-generation", model=model)`` after ``set_seed(seed)`` with the same settings.

    Args:
        prompt: Text to continue.
        model: Checkpoint directory.
        sampling: How tokens are chosen.
        seed: Seed of the random numbers; ``None`` draws one and names it on stderr.
        device: Where to run; ``None`` means what ``pipeline`` picks: an accelerator if there is one.
        dtype: Dtype of the weights; ``None`` means the checkpoint's.

    Raises:
        CommandError: The checkpoint is missing, of another architecture, or broken.
    """
    checkpoint = open_checkpoint(model)
    if not (model / "tokenizer.model").is_file():
        require_file(model / "tokenizer.json")
    with reported_as(ExitCode.BROKEN, f"{model}: the tokenizer does not load"):
        tokenizer = AutoTokenizer.from_pretrained(model, config=checkpoint.config, local_files_only=True)
    # Not left to `pipeline`, which hides why a checkpoint does not load and retries in float32.
    with reported_as(ExitCode.BROKEN, f"{model}: the weights do not load"):
        weights = AutoModelForCausalLM.from_pretrained(model, dtype=dtype or "auto", local_files_only=True)
    text_generation = pipeline("text-generation", model=weights, tokenizer=tokenizer, device=device)

    if seed is None and not sampling.greedy:
        seed = secrets.randbelow(2**32)
        print(f"seed: {seed}", file=sys.stderr)
    if seed is not None:
        set_seed(seed)
    _write(prompt)
    text_generation(prompt, streamer=TextPieceStreamer(tokenizer, _write), **sampling.generate_kwargs())
    _write("\n")


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


def _write(text: str) -> None:
    print(text, end="", flush=True)


__all__ = ["Sampling", "check_device", "generate", "quiet"]
