"""SentencePiece models of Gemma's kind, trained on a text that is made here, or written piece by piece."""

import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support import require

CODE = """\
def merge(left, right):
    \"\"\"Joins two sorted lists.\"\"\"
    out = []
    while left and right:
        out.append(left.pop(0) if left[0] <= right[0] else right.pop(0))
    return out + left + right


for (int i = 0; i < 1024; ++i) {
        sum += a[i] * b[i];  // 0x1F
}
<html><body><h1>Title</h1><p>Some <b>bold</b> text</p></body></html>
"""
PROSE = """\
In the beginning God created the heaven and the earth. And the earth was without form, and void.
Être ou ne pas être, là est la question; où sont les neiges d'antan ?
Die Würde des Menschen ist unantastbar. Straße, Größe, Fußgängerübergänge.
Все люди рождаются свободными и равными в своём достоинстве и правах.
すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。
人人生而自由,在尊嚴和權利上一律平等。
يولد جميع الناس أحراراً متساوين في الكرامة والحقوق.
כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם.
सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता प्राप्त है।
aa aaa aaaa aaaaa aaaaaaaa abab ababab aba bab baba abba abcabcabc cabcab
Mississippi bananas assess possessiveness, 1776 1984 3.14159 100,000,000 2024-02-29
"""
SYMBOLS = [
    "<mask>",
    *(f"<unused{i}>" for i in range(12)),
    "<start_of_turn>",
    "<end_of_turn>",
    *("\n" * n for n in range(2, 32)),
    *("▁" * n for n in range(2, 32)),
    *("\t" * n for n in range(2, 32)),
    *(f"<{slash}{tag}>" for tag in ("table", "tr", "td", "h1", "b", "code", "blockquote") for slash in ("", "/")),
]
# What Gemma's tokenizer.model says of itself, in the words of the trainer.
SETTINGS: dict[str, Any] = {
    "model_type": "bpe",
    "byte_fallback": True,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "normalization_rule_name": "identity",
    "pad_id": 0,
    "eos_id": 1,
    "bos_id": 2,
    "unk_id": 3,
    "pad_piece": "<pad>",
    "eos_piece": "<eos>",
    "bos_piece": "<bos>",
    "unk_piece": "<unk>",
    "num_threads": 1,
    "minloglevel": 2,
}


def train(
    path: Path, *, vocab_size: int, symbols: Sequence[str] = tuple(SYMBOLS), text: str = PROSE + CODE, **settings: Any
) -> Path:
    """Train a model on ``text`` with Gemma's settings, or others given by name, and write it to ``path``."""
    written = io.BytesIO()
    require("sentencepiece").SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines() * 3),
        model_writer=written,
        vocab_size=vocab_size,
        user_defined_symbols=list(symbols),
        **{**SETTINGS, **settings},
    )
    path.write_bytes(written.getvalue())
    return path


def proto(path: Path) -> Any:
    """The model in ``path`` as a protocol buffer, to look at and to alter."""
    require("google.protobuf")
    model = require("sentencepiece.sentencepiece_model_pb2").ModelProto()
    model.ParseFromString(path.read_bytes())
    return model


def write(path: Path, *, base: Path, normal: Sequence[tuple[str, float]], symbols: Sequence[str]) -> Path:
    """A model with the settings, special pieces and bytes of ``base``, and these pieces and user-defined symbols."""
    model = proto(base)
    kept = [piece for piece in model.pieces if piece.type in (2, 3, 6) or piece.piece == "<mask>"]
    pieces = [type(kept[0]).FromString(piece.SerializeToString()) for piece in kept]
    del model.pieces[:]
    model.pieces.extend(pieces)
    for text, score, kind in [*((text, 0.0, 4) for text in symbols), *((*piece, 1) for piece in normal)]:
        model.pieces.add(piece=text, score=score, type=kind)
    path.write_bytes(model.SerializeToString())
    return path


def random_pieces(
    rng: random.Random, *, alphabet: str, count: int, longest: int, closed: bool
) -> list[tuple[str, float]]:
    """``alphabet`` and ``count`` strings over it, with distinct random scores.

    ``closed``: a string is put together from two that are there, so all have a split. Otherwise they are arbitrary, and
    most can never be put together.
    """
    texts = list(alphabet)
    for _ in range(count):
        if closed:
            text = rng.choice(texts) + rng.choice(texts)
        else:
            text = "".join(rng.choices(alphabet, k=rng.randint(2, longest)))
        if len(text) <= longest and text not in texts:
            texts.append(text)
    scores = rng.sample(range(-4 * len(texts), 4 * len(texts)), len(texts))
    return [(text, float(score)) for text, score in zip(texts, scores, strict=True)]
