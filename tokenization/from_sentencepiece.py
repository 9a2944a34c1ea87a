"""Gemma's published form of the vocabulary, a SentencePiece BPE model (``tokenizer.model``), as a tokenizer.

Source: ``bpe_model.cc``, ``model_interface.cc`` and ``normalizer.cc`` of SentencePiece 0.2.3. It joins, again and
again, the two neighbours whose concatenation is the piece with the highest score, the leftmost such pair first.
``tokenizers`` joins the pair of the best rank, the leftmost first. With a rank for every split of every piece, ordered
by the score of the whole, the two are the same, provided that no two pieces share a score:

    While a piece grows, nothing outside its characters has a part in it, so its neighbours cannot change how it is put
    together, and its last two parts are the same wherever it appears. Two ways of making one piece therefore never
    compete, and the order among the splits of one piece does not matter.
"""

import importlib
import os
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken

from recurrent_gemma.tokenization.tokenizer import BYTE_PIECES, CHAT_TEMPLATE, TURN_MARKERS, RecurrentGemmaTokenizer

# `ModelProto.SentencePiece.Type` in sentencepiece_model.proto.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_TYPE_NAMES = {
    _NORMAL: "NORMAL",
    _UNKNOWN: "UNKNOWN",
    _CONTROL: "CONTROL",
    _USER_DEFINED: "USER_DEFINED",
    _UNUSED: "UNUSED",
    _BYTE: "BYTE",
}
_SPECIAL_TYPES = {
    "<pad>": (_CONTROL,),
    "<eos>": (_CONTROL,),
    "<bos>": (_CONTROL,),
    "<unk>": (_UNKNOWN,),
    "<mask>": (_CONTROL, _USER_DEFINED, _NORMAL),
}
_BPE = 2  # `TrainerSpec.ModelType`
_MODEL_TYPES = {1: "UNIGRAM", 2: "BPE", 3: "WORD", 4: "CHAR"}
# `PrefixMatcher::PrefixMatch` has room for this many symbols that begin at one place.
_MAX_NESTED_SYMBOLS = 64


class _Piece(NamedTuple):
    text: str
    score: float
    type: int


def tokenizer_from_sentencepiece(
    path: str | os.PathLike[str], *, chat_template: str | None = CHAT_TEMPLATE
) -> RecurrentGemmaTokenizer:
    """The tokenizer that gives SentencePiece's ids, with ``save_pretrained`` for the files that Transformers reads.

    User-defined symbols are matched whole, before anything else, as SentencePiece does. Control symbols are matched as
    well, which SentencePiece never does in text; ``split_special_tokens=True`` makes them plain text.

    Args:
        path: A SentencePiece model as Gemma's: BPE with byte fallback, text taken as it is.
        chat_template: The template to save with it. ``None``: none, and the model may be without turn markers. As ever,
            ``RecurrentGemmaTokenizer`` has the default template where a directory holds none.

    Raises:
        FileNotFoundError: ``path`` is no file.
        ValueError: It holds no SentencePiece model, or one whose ids could not be reproduced: says which setting or
            piece it is.
        ImportError: The ``convert`` extra is not installed.
    """
    model = _read(Path(path))
    _check_settings(model)
    pieces = [_Piece(piece.piece, piece.score, piece.type) for piece in model.pieces]
    ids = _ids_of_pieces(pieces)
    special = set(_SPECIAL_TYPES)
    if chat_template is not None:
        special.update(TURN_MARKERS)
        for marker in TURN_MARKERS:
            if marker not in ids or pieces[ids[marker]].type not in (_CONTROL, _USER_DEFINED):
                raise ValueError(
                    f"pieces: expected the turn marker {marker!r} as a user-defined or control symbol, which the chat "
                    "template writes, got a model without it. Pass chat_template=None for a model that was not "
                    "trained on conversations."
                )
    vocab = _with_names_for_bytes(pieces, ids)
    merges = _merges(pieces, vocab)
    added_tokens = {
        i: AddedToken(piece.text, normalized=True, special=piece.type != _USER_DEFINED or piece.text in special)
        for i, piece in enumerate(pieces)
        # SentencePiece looks for symbols once spaces have become U+2581: one that holds a space is never found.
        if (piece.type in (_CONTROL, _UNKNOWN, _USER_DEFINED) or piece.text in special) and " " not in piece.text
    }
    return RecurrentGemmaTokenizer(
        vocab=vocab,
        merges=merges,
        chat_template=chat_template,
        added_tokens_decoder=added_tokens,
        extra_special_tokens=list(TURN_MARKERS) if chat_template is not None else [],
    )


def _read(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(
            f"path: expected a SentencePiece model, such as Gemma's tokenizer.model, got {str(path)!r}, where there is "
            "no file."
        )
    try:
        message = importlib.import_module("google.protobuf.message")
        definitions = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    except ImportError as error:
        raise ImportError(
            f'Reading a SentencePiece model needs sentencepiece and protobuf: pip install "recurrent-gemma[convert]" '
            f"({error})"
        ) from error
    model = definitions.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except message.DecodeError as error:
        raise ValueError(
            f"path: expected a SentencePiece model, got {str(path)!r}, which does not parse ({error}); it is another "
            "kind of file, or incomplete. Copy it again."
        ) from error
    # Pieces come first in the file, so one that is cut between two of them still parses.
    missing = [name for name in ("trainer_spec", "normalizer_spec") if not model.HasField(name)]
    if missing or not model.pieces:
        raise ValueError(
            f"path: expected a SentencePiece model with pieces, trainer_spec and normalizer_spec, got {str(path)!r} "
            f"with {len(model.pieces)} pieces and without {' and '.join(missing) or 'anything else'}; it is another "
            "kind of file, or incomplete. Copy it again."
        )
    return model


def _check_settings(model: Any) -> None:
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    if trainer.model_type != _BPE:
        raise ValueError(
            f"trainer_spec.model_type: expected BPE, got {_MODEL_TYPES.get(trainer.model_type, trainer.model_type)}. "
            "Models of the Gemma family are BPE; use Transformers' converters for others."
        )
    for field, spec in (("normalizer_spec", normalizer), ("denormalizer_spec", model.denormalizer_spec)):
        if spec.precompiled_charsmap:
            raise ValueError(
                f"{field}: expected the identity, got {spec.name!r} with {len(spec.precompiled_charsmap)} bytes of "
                "rules. Train with normalization_rule_name='identity'."
            )
    for field, spec, expected in (
        ("byte_fallback", trainer, True),
        ("add_dummy_prefix", normalizer, False),
        ("remove_extra_whitespaces", normalizer, False),
        ("escape_whitespaces", normalizer, True),
    ):
        given = getattr(spec, field)
        if given != expected:
            raise ValueError(
                f"{field}: expected {expected}, as in Gemma's models, got {given}, which this tokenizer does not "
                f"reproduce. Train with {field}={expected}."
            )


def _ids_of_pieces(pieces: Sequence[_Piece]) -> dict[str, int]:
    """Ids by text, once every piece has been checked by itself."""
    ids: dict[str, int] = {}
    for i, piece in enumerate(pieces):
        if not piece.text or piece.text in ids:
            raise ValueError(
                f"pieces: expected distinct texts, got {piece.text!r} as piece {i}"
                f"{f' and as piece {ids[piece.text]}' if piece.text else ''}. Remove one from the model."
            )
        if "\0" in piece.text:
            raise ValueError(
                f"pieces: expected texts without NUL, got {piece.text!r} as piece {i}; releases of SentencePiece "
                "differ in what they make of it. Remove it from the model."
            )
        if piece.type in (_CONTROL, _UNKNOWN) and len(piece.text) == 1:
            raise ValueError(
                f"pieces: expected control symbols of more than one character, got {piece.text!r} as piece {i}; "
                "releases of SentencePiece differ in what they make of that character in a text. Rename it."
            )
        ids[piece.text] = i
    for text, types in _SPECIAL_TYPES.items():
        given = pieces[ids[text]].type if text in ids else None
        if given not in types:
            raise ValueError(
                f"pieces: expected {text!r} of type {' or '.join(_TYPE_NAMES[t] for t in types)}, got "
                f"{'none' if given is None else f'type {_TYPE_NAMES[given]}'}. Train with Gemma's names: "
                "pad_piece='<pad>', eos_piece='<eos>', bos_piece='<bos>', unk_piece='<unk>', and '<mask>' as a "
                "user-defined symbol."
            )
    n_unknown = sum(piece.type == _UNKNOWN for piece in pieces)
    if n_unknown > 1:
        raise ValueError(f"pieces: expected one piece of type UNKNOWN, got {n_unknown}. Keep '<unk>' only.")
    bytes_given = {piece.text for piece in pieces if piece.type == _BYTE}
    if bytes_given != set(BYTE_PIECES):
        different = sorted(bytes_given.symmetric_difference(BYTE_PIECES))
        raise ValueError(
            f"pieces: expected the 256 bytes '<0x00>' to '<0xFF>' of type BYTE, got {len(bytes_given)} pieces of that "
            f"type; {different[0]!r} is missing or superfluous. Train with byte_fallback=True."
        )
    _check_symbols([piece.text for piece in pieces if piece.type == _USER_DEFINED])
    return ids


def _check_symbols(symbols: Sequence[str]) -> None:
    known = set(symbols)
    for symbol in symbols:
        nested = sum(symbol[:end] in known for end in range(1, len(symbol) + 1))
        if nested > _MAX_NESTED_SYMBOLS:
            raise ValueError(
                f"pieces: expected at most {_MAX_NESTED_SYMBOLS} user-defined symbols that begin alike, got {nested} "
                f"that {symbol!r} begins with, of which SentencePiece does not look at all. Remove some of them."
            )


def _with_names_for_bytes(pieces: Sequence[_Piece], ids: dict[str, int]) -> dict[str, int]:
    """``ids`` in which a byte that is a character, has no piece and is part of one goes by the character.

    SentencePiece joins characters whether they are pieces or not; in Gemma's models that may be the tab. Here only what
    is in the vocabulary can be joined. The id stays, and with it what is encoded and decoded.
    """
    parts = {character for piece in pieces if piece.type == _NORMAL for character in piece.text}
    nameless = {BYTE_PIECES[ord(c)]: c for c in parts if c.isascii() and c != " " and c not in ids}
    return {nameless.get(text, text): i for text, i in ids.items()}


def _merges(pieces: Sequence[_Piece], ids: dict[str, int]) -> list[tuple[str, str]]:
    """Every split of every piece that can be put together, the highest score first.

    Raises:
        ValueError: Ranks cannot express what SentencePiece would do.
    """
    usable = [piece for piece in pieces if piece.type in (_NORMAL, _UNUSED)]
    for piece in usable:
        if piece.type == _UNUSED and len(piece.text) == 1:
            raise _unused(piece.text, ids[piece.text], "of which releases of SentencePiece make different things")
    # A user-defined symbol is never joined with anything, and a space has become U+2581 by then. Any other single
    # character is joined, whether it is a piece or not.
    apart = {" ", *(piece.text for piece in pieces if piece.type == _USER_DEFINED)}
    joined = {text for text in ids if len(text) == 1} - apart
    ranked: list[tuple[float, str, str]] = []
    by_score: dict[float, str] = {}
    for piece in sorted(usable, key=lambda piece: len(piece.text)):
        text = piece.text
        splits = []
        for end in range(1, len(text)):
            left, right = text[:end], text[end:]
            for part, other in ((left, right), (right, left)):
                no_piece = len(part) == 1 and part not in joined and part not in apart
                if no_piece and (other in joined or (len(other) == 1 and other not in apart)):
                    raise ValueError(
                        f"pieces: expected a piece for each character, got none for {part!r} of {text!r} (piece "
                        f"{ids[text]}). SentencePiece joins it all the same, which ranks of pieces cannot express. "
                        "Add the character to the model."
                    )
            if left in joined and right in joined:
                splits.append((-piece.score, left, right))
        if not splits:
            continue
        if piece.type == _UNUSED:
            raise _unused(text, ids[text], "which SentencePiece puts together and splits again")
        if isnan(piece.score) or piece.score in by_score:
            raise ValueError(
                f"pieces: expected distinct scores, since SentencePiece joins the leftmost of equal ones, got "
                f"{piece.score} for {text!r}"
                f"{'' if isnan(piece.score) else f' and for {by_score[piece.score]!r}'}. "
                "Give every piece a score of its own."
            )
        by_score[piece.score] = text
        joined.add(text)
        ranked += splits
    ranked.sort(key=lambda split: split[0])
    return [(left, right) for _, left, right in ranked]


def _unused(text: str, i: int, reason: str) -> ValueError:
    return ValueError(
        f"pieces: expected pieces of type UNUSED that no text is made of, got {text!r} (piece {i}), {reason}. Make it "
        "NORMAL, or remove it."
    )


__all__ = ["tokenizer_from_sentencepiece"]
