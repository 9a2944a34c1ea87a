"""Texts that tokenizers go wrong on: all of Unicode, whitespace, code, and strings glued from a model's own pieces."""

import random
from collections.abc import Iterator, Sequence

# What tokenizers of Transformers find in a text and SentencePiece does not.
CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>"]

HAND_WRITTEN = [
    "",
    " ",
    "\n",
    "\0",
    "a\0b\0",
    "In the beginning God created the heaven and the earth.",
    "  leading, trailing  and    long" + " " * 100 + "whitespace  ",
    " " * 5000,
    "x" + "\t" * 200 + "\n" * 200 + "\r\n" * 40 + " \n \t" * 40,
    "a" * 1000 + "b" + "ab" * 500 + "aab" * 300,
    "1776 and 3.14159, 2024-02-29, 0x1F, ١٢٣ ½ ²",
    "naïve café — «quotes» … ½ ﬁ İ ß ẞ ǆ",
    "e\u0301 a\u0308\u0301\u0323 \u0301 Z\u0351\u036b\u0343\u036a",
    "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇬🇧🇺🇦🇬 ❤️ 1️⃣ 🧑🏿‍🚀",
    "שלום \u202e עולם \u202c العَرَبِيَّة \u200f\u200e ‏",
    "".join(map(chr, range(0x20))) + "".join(map(chr, range(0x7F, 0xA1))),
    "\ufeff\u200b\u2028\u2029\u2060\u3000\u00a0\u1680\u2003\u205f\u180e",
    "\ufffd \ufffe \uffff \U0001fffe \U0010ffff \ue000 \U000f0000",
    "한국어 ᄒ\u1161\u11ab ไทย ກຂ ខ្មែរ தமிழ் 𝔘𝔫𝔦 𒀀𓀀 𠀀𪛖",
    "def f(x):\n    if x:\n\treturn [i  for i in range( 10 )]\n\n\n\n",
    "<html>\n  <body><table><tr><td>x</td></tr></table></body>\n</html><!-- <b></b> -->",
    "<start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\n",
    "<start_of_turn <start_of_turn><<start_of_turn>>< start_of_turn> <unused1<unused11>> <0x41><0x0A>",
    "<mask><mask <unused0><unused12><UNUSED0>",
    "a ▁ b ▁▁ ▁  ▁c▁",
]


def all_of_unicode(seed: int = 0) -> list[str]:
    """One code point of every 16 (so some of every block), without surrogates, in texts of 64."""
    rng = random.Random(seed)
    points = [chr(start + rng.randrange(16)) for start in range(0, 0x110000, 16) if not 0xD800 <= start <= 0xDFFF]
    shuffled = rng.sample(points, len(points))
    return ["".join(order[i : i + 64]) for order in (points, shuffled) for i in range(0, len(order), 64)]


def hard_strings(seed: int, pieces: Sequence[str], symbols: Sequence[str], count: int) -> Iterator[str]:
    """Pieces glued together, ends of pieces, repeated characters, beginnings of symbols, spaces, any characters."""
    rng = random.Random(seed)
    for _ in range(count):
        yield without_control("".join(_part(rng, pieces, symbols) for _ in range(rng.randint(1, 8))))


def without_control(text: str) -> str:
    """``text`` without the symbols in ``CONTROL``, those that come about by taking others out included."""
    while any(symbol in text for symbol in CONTROL):
        for symbol in CONTROL:
            text = text.replace(symbol, "")
    return text


def _part(rng: random.Random, pieces: Sequence[str], symbols: Sequence[str]) -> str:
    kind = rng.randrange(6 if symbols else 5)
    if kind == 0:
        return "".join(rng.choices(pieces, k=rng.randint(1, 4)))
    if kind == 1:
        piece = rng.choice(pieces)
        return piece[rng.randrange(len(piece)) :]
    if kind == 2:
        return rng.choice(rng.choice(pieces)) * rng.randint(1, 9)
    if kind == 3:
        return " " * rng.randint(1, 40)
    if kind == 4:
        ranges = [(0, 0x7F), (0x80, 0xD7FF), (0xE000, 0x10FFFF)]
        return chr(rng.randint(*rng.choice(ranges)))
    symbol = rng.choice(symbols)
    return symbol[: rng.randint(1, len(symbol))] * rng.randint(1, 2)
