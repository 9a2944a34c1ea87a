"""A text that goes on: its tokens, the state behind them, and the file that keeps both between two programs."""

import contextlib
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text
from transformers import TextGenerationPipeline

from recurrent_gemma.cli.checkpoint import block_types_of, load_tokenizer, open_checkpoint
from recurrent_gemma.cli.errors import CommandError, ExitCode, one_line, reported_as
from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling.cache import (
    RecurrentGemmaCache,
    SessionFileError,
    SessionInfo,
    read_session_info,
)

# The last line is looked for in this many tokens, however long the text is.
_TAIL = 256


class Session:
    """One sequence of tokens and the state after those of them that the model has read.

    What ``generate`` samples last, the model has not read: such tokens are kept as well and read with what comes next.

    Args:
        cache: The state.
        ids: All tokens; the first ``cache.columns`` of them have been read.
        path: Where ``save`` writes; None: nowhere.
    """

    def __init__(self, cache: RecurrentGemmaCache, ids: list[int], path: Path | None = None) -> None:
        self.cache = cache
        self.ids = ids
        self.path = path

    @classmethod
    def open(cls, path: Path | None, config: RecurrentGemmaConfig) -> "Session":
        """The session in the file ``path``, or a new one if there is no such file.

        Raises:
            CommandError: The file is no session of one text and this model, or it could not be written later.
        """
        if path is None or not path.exists():
            if path is not None and not path.absolute().parent.is_dir():
                raise CommandError(f"{path}: no such directory to save a session in", ExitCode.NOT_FOUND)
            return cls(RecurrentGemmaCache(config), [], path)
        info, cache = _read_info(path), _load(path, config)
        if info.rows > 1:
            raise CommandError(f"{path}: expected a session of one text, got {info.rows} rows", ExitCode.SESSION)
        if info.token_ids is None and info.columns:
            raise CommandError(
                f"{path}: expected a session with its tokens, got a state alone; pass token_ids to "
                "RecurrentGemmaCache.save",
                ExitCode.SESSION,
            )
        return cls(cache, [] if info.token_ids is None else info.token_ids[0].tolist(), path)

    @property
    def unread(self) -> list[int]:
        """Tokens that the model has yet to read."""
        return self.ids[self.cache.columns :]

    def expect_runs_on(self, model: torch.nn.Module) -> None:
        """Move the state to where ``model`` is.

        Raises:
            CommandError: The state is of another dtype than the model runs in; mixed ones would give other numbers.
        """
        runs_in = next(model.parameters()).dtype
        kept_in = {t.dtype for name, t in self.cache.tensors().items() if name.endswith((".conv", ".key"))}
        if kept_in - {runs_in}:
            found = ", ".join(str(dtype).removeprefix("torch.") for dtype in kept_in)
            expected = str(runs_in).removeprefix("torch.")
            raise CommandError(
                f"{self.path}: expected a state in {expected}, as the model runs, got {found}; run with --dtype "
                f"{found}",
                ExitCode.SESSION,
            )
        self.cache.to(next(model.parameters()).device)

    def extend(
        self, ids: list[int], text_generation: TextGenerationPipeline, stop_ids: Collection[int], **settings: Any
    ) -> None:
        """Let the model read what it has not read of the text and ``ids``, and generate.

        A token of ``stop_ids`` ends the generation and is not kept.

        Args:
            ids: What the text goes on with.
            text_generation: The model's pipeline, whose defaults hold as without a session.
            stop_ids: Tokens that end the generation.
            **settings: As for ``generate``.
        """
        tokens = torch.tensor([self.ids + ids], dtype=torch.long)
        inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "prompt_text": ""}
        # The pipeline's own step between reading a text and writing one. generate() gets all tokens, so that penalties
        # see the whole text, and feeds those beyond the cache's columns.
        output = text_generation.forward(
            inputs, past_key_values=self.cache, eos_token_id=list(stop_ids) or None, **settings
        )
        self.ids = output["generated_sequence"][0, 0].tolist()
        if self.ids[-1] in stop_ids:
            self.ids.pop()

    def save(self) -> None:
        """Write tokens and state; the file is complete or what it was before, whenever the program ends.

        Raises:
            CommandError: The file cannot be written.
        """
        if self.path is not None:
            with reported_as(ExitCode.SESSION, f"{self.path}: the session cannot be saved"):
                self.cache.save(self.path, torch.tensor([self.ids], dtype=torch.long))


def state_nbytes(cache: RecurrentGemmaCache) -> int:
    """Bytes of the layers' states."""
    return sum(tensor.nbytes for name, tensor in cache.tensors().items() if name.startswith("layers."))


def session_info(path: Path, model: Path | None = None) -> None:
    """Print a table about a session file.

    Args:
        path: The file.
        model: Directory of its model, for the text's last line.

    Raises:
        CommandError: The file is missing or none of its kind, or the directory is missing, broken or another model's.
    """
    info = _read_info(path)
    with reported_as(ExitCode.SESSION, f"{path}: the model's config"):
        fields = dict(info.config)
        # The file has the kind of every layer, which a config derives from its block types.
        block_types = block_types_of(fields.pop("layers_block_type"))
        config = RecurrentGemmaConfig(**fields, block_types=block_types)
    state = state_nbytes(_load(path, config))
    kinds = Counter(block_types)
    tokens = 0 if info.token_ids is None else info.token_ids.shape[1]
    rows = {
        "format version": f"{info.format_version}",
        "layers": f"{config.num_hidden_layers}: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}",
        "width": f"{config.hidden_size}; recurrence {config.lru_width}, MLP {config.mlp_width}",
        "window": f"{config.attention_window_size:,} positions before each token",
        "vocabulary": f"{config.vocab_size:,}",
        "dtype": info.dtype or "nothing read yet",
        "rows": f"{info.rows}",
        "tokens seen": f"{info.columns:,}",
        "tokens kept": "none" if info.token_ids is None else f"{tokens:,}, {max(0, tokens - info.columns)} yet to read",
        "state": f"{state:,} bytes ({decimal(state)})",
        "file": f"{info.nbytes:,} bytes ({decimal(info.nbytes)})",
    }
    if "attention" not in kinds:
        del rows["window"]
    if model is not None and info.token_ids is not None:
        checkpoint = open_checkpoint(model)
        # Another model's tokenizer would make a text of any ids.
        _load(path, checkpoint.config)
        text = load_tokenizer(checkpoint).decode(info.token_ids[-1, -_TAIL:], skip_special_tokens=True)
        rows["last line"] = next((line for line in reversed(text.split("\n")) if line.strip()), "")
    table = Table(title=Text(str(path)), title_justify="left", show_header=False)
    for name, value in rows.items():
        table.add_row(name, Text(value))
    Console().print(table)


def _read_info(path: Path) -> SessionInfo:
    if not path.exists():
        raise CommandError(f"{path}: no such session file", ExitCode.NOT_FOUND)
    with _reading(path):
        return read_session_info(path)


def _load(path: Path, config: RecurrentGemmaConfig) -> RecurrentGemmaCache:
    with _reading(path):
        return RecurrentGemmaCache.load(path, config)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except SessionFileError as error:
        raise CommandError(one_line(str(error)), ExitCode.SESSION) from error
    except OSError as error:
        raise CommandError(f"{path}: the session cannot be read: {one_line(str(error))}", ExitCode.SESSION) from error


__all__ = ["Session", "session_info", "state_nbytes"]
