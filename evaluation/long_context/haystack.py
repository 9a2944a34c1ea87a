"""Texts with a key hidden in them, of a given number of tokens with any tokenizer."""

import random
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

FILLER = """\
The road went up from the river to the hill, and from the hill one could see the fields. In the morning there was mist
over the water. Sheep stood under the old trees and waited for the sun. A man came by with a cart of hay and did not
stop. After some time the mist was gone, and the fields were bright. The women went to the well and talked of the
harvest. It had been a dry year, but not a bad one. There was bread enough, and the wine was better than the year
before. At noon the bell was heard from the other side of the valley. Then everyone sat down in the shade to eat. The
dogs lay in the dust and slept. Nobody spoke much while it was so hot. Later a little wind came from the west, and the
leaves began to move. The children ran down to the river and threw stones into it. Some of them could already swim. An
old woman called them back before it grew dark. In the evening the cows came home by themselves. Smoke rose from the
houses and hung over the roofs. The men sat before their doors and looked at the sky. It would not rain that night, nor
on the day that followed. When the stars were out, the lamps were put out one after the other. Only the river could be
heard, and now and then an owl in the wood.
"""
NEEDLE = "Remember this well: the pass key is {key}. Once more, the pass key is {key}."
QUESTION = "What is the pass key? The pass key is"

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class Prompt(NamedTuple):
    """A text to read, and what may follow it.

    Attributes:
        ids: The text, up to where the key is asked for.
        needle_end: Tokens of it up to the end of the needle.
        candidates: Ids of each candidate, as they would follow.
        answer: Which candidate is the key.
        key: Its text.
    """

    ids: list[int]
    needle_end: int
    candidates: list[list[int]]
    answer: int
    key: str


class Haystack:
    """Makes prompts: filler, with a needle between two of its sentences, and a question at the end.

    Every part is tokenized on its own and the parts are joined, so that a prompt has exactly the length asked for.

    Args:
        tokenizer: Of any kind.
        filler: Plain text; repeated where it is too short.
        needle: What holds the key, with ``{key}`` in it.
        question: What the key follows, after a space.
        keys: Texts to draw keys from; None: numbers of five digits.

    Raises:
        ValueError: The needle has no place for a key, or the filler no sentence.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        filler: str = FILLER,
        needle: str = NEEDLE,
        question: str = QUESTION,
        keys: Sequence[str] | None = None,
    ) -> None:
        if "{key}" not in needle:
            raise ValueError(f"needle: expected a text with {{key}} in it, got {needle!r}.")
        self.tokenizer, self.needle, self.question = tokenizer, needle, question
        self.keys = None if keys is None else list(dict.fromkeys(keys))
        self.bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        sentences = (self._ids(f" {s}") for s in _SENTENCE_END.split(" ".join(filler.split())) if s)
        self.sentences = [ids for ids in sentences if ids]
        if not self.sentences:
            raise ValueError("filler: expected sentences, got none.")
        self.question_ids = self._ids(f" {question}")

    def prompt(self, length: int, depth: float, *, candidates: int, answer: int, seed: int) -> Prompt:
        """A prompt of ``length`` tokens whose needle stands after ``depth`` (0 to 1) of the filler, nearly.

        Candidates and the stretch of filler are drawn with ``seed``: they are the same at any length and depth, and
        whichever candidate is the ``answer``, the one that the needle holds.

        Raises:
            ValueError: The parts need more tokens than ``length``; there are too few keys; the depth is not within 0 to
                1; the tokenizer joins the end of the question to a key.
        """
        if not 0 <= depth <= 1:
            raise ValueError(f"depth: expected 0 to 1, got {depth}.")
        draw = random.Random(seed)
        keys = self._draw_keys(draw, candidates)
        needle = self._ids(" " + self.needle.replace("{key}", keys[answer]))
        space = length - len(self.bos) - len(needle) - len(self.question_ids)
        if space < 0:
            raise ValueError(
                f"length: expected at least {length - space} tokens, which needle and question take, got {length}."
            )
        # The filler ends with a sentence, and begins anywhere in one.
        index, filler, ends = draw.randrange(len(self.sentences)), [], [0]
        while ends[-1] < space:
            filler.append(self.sentences[index % len(self.sentences)])
            ends.append(ends[-1] + len(filler[-1]))
            index -= 1
        from_end = min((end for end in ends if end <= space), key=lambda end: abs(end - (1 - depth) * space))
        if depth == 0:
            from_end = space
        stream = [token for sentence in reversed(filler) for token in sentence][ends[-1] - space :]
        before, after = stream[: space - from_end], stream[space - from_end :]
        ids = [*self.bos, *before, *needle, *after, *self.question_ids]
        followers = [self._continuation(key) for key in keys]
        return Prompt(ids, len(self.bos) + len(before) + len(needle), followers, answer, keys[answer])

    def _draw_keys(self, draw: random.Random, count: int) -> list[str]:
        if self.keys is None:
            return [str(number) for number in draw.sample(range(10_000, 100_000), count)]
        if len(self.keys) < count:
            raise ValueError(
                f"keys: expected at least as many different ones as candidates, {count}, got {len(self.keys)}."
            )
        return draw.sample(self.keys, count)

    def _continuation(self, key: str) -> list[int]:
        """The ids that ``key`` adds to the question."""
        whole = self._ids(f" {self.question} {key}")
        if whole[: len(self.question_ids)] != self.question_ids or len(whole) == len(self.question_ids):
            raise ValueError(
                f"question: expected one whose tokens stay the same before a key, got {self.question!r} with "
                f"{key!r}, which this tokenizer joins; end the question with another word."
            )
        return whole[len(self.question_ids) :]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)
