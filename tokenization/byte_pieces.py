"""Pieces that stand for one byte each, and the text that a run of them gives.

Source: ``ProcessBytePieces`` in SentencePiece's ``sentencepiece_processor.cc``.
"""

import codecs
import json
from collections.abc import Iterable
from typing import Any

from tokenizers import decoders

BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))

_GEMMA_DECODER = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
_EACH_BYTE = "recurrent_gemma.each_byte"


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    # Python's own "replace" gives one U+FFFD for a character that is cut off, however many bytes there are of it.
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(_EACH_BYTE, _replace_each_byte)


def decode_bytes(values: Iterable[int]) -> str:
    """The characters that the bytes encode in UTF-8, with U+FFFD for every byte that is no part of one."""
    return bytes(values).decode(errors=_EACH_BYTE)


def decodes_as_gemma(decoder: Any) -> bool:
    """Whether ``decoder``, of a ``tokenizers.Tokenizer``, treats each token by itself, but for runs of bytes."""
    return decoder is not None and json.loads(decoder.__getstate__()) == json.loads(_GEMMA_DECODER.__getstate__())


__all__ = ["BYTE_PIECES", "decode_bytes", "decodes_as_gemma"]
