"""Turns tokens into text as they come, and writes it; the pieces joined are the text of all tokens."""

import re
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers.generation import BaseStreamer

from recurrent_gemma.cli.session import state_nbytes
from recurrent_gemma.modeling import RecurrentGemmaCache

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class TextPieceStreamer(BaseStreamer):
    """Streamer for ``generate`` that hands on the text of each new token, the prompt's excepted.

    Transformers' ``TextStreamer`` decodes the whole line again for every token and holds words back. This one decodes
    the last piece and the new token, so its cost does not grow with the text. Tokens that stand for single bytes are
    held until the character they belong to is complete.

    Args:
        tokenizer: Decodes the tokens.
        write: Takes each piece of text.
    """

    def __init__(self, tokenizer: Any, write: Callable[[str], Any]) -> None:
        self._tokenizer = tokenizer
        self._write = write
        self._special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        self._prompt_seen = False
        self._written: list[int] = []
        self._pending: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt (first call, shape (1, L)) or a new token (shape (1,))."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        self._pending += value.tolist()
        last = self._pending[-1]
        # Special tokens leave no text: bytes before and after one form a character all the same.
        if last not in self._special and not _BYTE_TOKEN.fullmatch(self._tokenizer.convert_ids_to_tokens(last)):
            self._flush()

    def end(self) -> None:
        """Hand on what is held back."""
        self._flush()

    def _flush(self) -> None:
        # The last piece stands before the new one, since some decoders treat the first token of a text differently.
        known = self._decode(self._written)
        text = self._decode(self._written + self._pending)[len(known) :]
        if text:
            self._write(text)
            self._written = self._pending
        self._pending = []

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


class Meter(BaseStreamer):
    """Counts and times the tokens that pass on to another streamer, over one call of ``generate`` or several.

    Args:
        cache: The cache that the calls extend.
        streamer: Takes the tokens; exchange it between two calls.

    Attributes:
        read: Tokens of prompts that were read, those that the cache had seen before excepted.
        generated: Tokens generated.
    """

    def __init__(self, cache: RecurrentGemmaCache, streamer: BaseStreamer) -> None:
        self.cache = cache
        self.streamer = streamer
        self.read = self.generated = 0
        self._decoded, self._seconds = 0, 0.0
        self._last: float | None = None
        self._in_call = False

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt (first call, shape (1, L)) or a new token (shape (1,))."""
        if not self._in_call:
            self._in_call, self._last = True, None
            self.read += value.shape[-1] - self.cache.columns
        else:
            now = time.perf_counter()
            self.generated += 1
            # The first token of a call comes out of reading the prompt.
            if self._last is not None:
                self._decoded += 1
                self._seconds += now - self._last
            self._last = now
        self.streamer.put(value)

    def end(self) -> None:
        """The call is over."""
        self._in_call = False
        self.streamer.end()

    def report(self) -> None:
        """Write the figures to stderr."""
        rate = f"{self._decoded / self._seconds:.1f}" if self._seconds else "-"
        size = f"{state_nbytes(self.cache):,}"
        print(
            f"tokens read: {self.read:,}, generated: {self.generated:,}, tokens/s: {rate}, state: {size} bytes",
            file=sys.stderr,
        )


def write_out(text: str) -> None:
    """Write a piece of text to stdout, to be seen at once."""
    print(text, end="", flush=True)


__all__ = ["Meter", "TextPieceStreamer", "write_out"]
