"""The pieces handed on are the text of all tokens, come as early as can be, and cost the same at any length."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from recurrent_gemma.cli.streaming import TextPieceStreamer


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(checkpoint)


def _stream(tokenizer: Any, ids: list[int]) -> list[str]:
    """Text handed on after each token, and at the end."""
    pieces: list[str] = []
    streamer = TextPieceStreamer(tokenizer, pieces.append)
    streamer.put(torch.tensor([[2, 5, 7]]))
    written = []
    for token in ids:
        streamer.put(torch.tensor([token]))
        written.append("".join(pieces))
    streamer.end()
    return [*written, "".join(pieces)]


@pytest.mark.parametrize("seed", range(20))
def test_pieces_joined_are_the_text(tokenizer: Any, seed: int):
    # Bytes that form no character, special tokens and words in any order.
    ids = random.Random(seed).choices(range(len(tokenizer)), k=100)
    assert _stream(tokenizer, ids)[-1] == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    "text", ["In the", " a b  c ", "naïve – 日本 👩‍👩‍👧", "\n\n one\ntwo\n", "1776, and so on...", "é", ""]
)
def test_every_token_is_handed_on_at_once_except_parts_of_a_character(tokenizer: Any, text: str):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    written = _stream(tokenizer, ids)
    for count, so_far in enumerate(written[:-1], start=1):
        whole = count
        while whole and tokenizer.convert_ids_to_tokens(ids[whole - 1]).startswith("<0x"):
            whole -= 1
        assert so_far == tokenizer.decode(ids[:whole], skip_special_tokens=True)
    assert written[-1] == text


def test_special_tokens_are_left_out(tokenizer: Any):
    words = tokenizer("In the", add_special_tokens=False).input_ids
    ids = [*words, tokenizer.bos_token_id, *words, tokenizer.eos_token_id]
    assert _stream(tokenizer, ids)[-1] == "In theIn the"


def test_cost_of_a_token_does_not_grow_with_the_text(tokenizer: Any):
    class Counting:
        longest = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def decode(self, ids: list[int], **kwargs: Any) -> str:
            self.longest = max(self.longest, len(ids))
            return tokenizer.decode(ids, **kwargs)

    counting = Counting()
    # No line breaks and no spaces, at which streamers that hold text back start anew.
    letters = tokenizer("abc", add_special_tokens=False).input_ids * 300
    assert _stream(counting, letters)[-1] == "abc" * 300
    assert counting.longest <= 2
