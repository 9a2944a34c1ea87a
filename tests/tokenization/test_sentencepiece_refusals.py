"""Models that could not be reproduced raise, and say which setting or piece it is; their neighbours convert."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recurrent_gemma.tokenization import tokenizer_from_sentencepiece
from tests.support import require
from tests.tokenization.conftest import Converted
from tests.tokenization.sentencepiece_models import proto, train, write
from tests.tokenization.texts import hard_strings

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


def altered(base: Path, tmp_path: Path, change: Callable[[Any], None]) -> Path:
    model = proto(base)
    change(model)
    path = tmp_path / "altered.model"
    path.write_bytes(model.SerializeToString())
    return path


def piece(model: Any, text: str) -> Any:
    (found,) = (piece for piece in model.pieces if piece.piece == text)
    return found


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"model_type": "unigram", "vocab_size": 700}, r"trainer_spec\.model_type: expected BPE, got UNIGRAM"),
        ({"model_type": "char"}, r"trainer_spec\.model_type: expected BPE, got CHAR"),
        ({"model_type": "word"}, r"trainer_spec\.model_type: expected BPE, got WORD"),
        (
            {"normalization_rule_name": "nmt_nfkc"},
            r"normalizer_spec: expected the identity, got 'nmt_nfkc' with \d+ bytes",
        ),
        ({"add_dummy_prefix": True}, "add_dummy_prefix: expected False, as in Gemma's models, got True"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces: expected False, .* got True"),
        ({"byte_fallback": False}, "byte_fallback: expected True, .* got False.*Train with byte_fallback=True"),
        ({"bos_piece": "<s>"}, "pieces: expected '<bos>' of type CONTROL, got none.*bos_piece='<bos>'"),
        ({"pad_id": -1, "eos_id": 0, "bos_id": 1, "unk_id": 2}, "pieces: expected '<pad>' of type CONTROL, got none"),
        ({"unk_piece": "??"}, "pieces: expected '<unk>' of type UNKNOWN, got none"),
        ({"user_defined_symbols": ["<mask>"]}, "expected the turn marker '<start_of_turn>'.*chat_template=None"),
        ({"user_defined_symbols": ["<start_of_turn>", "<end_of_turn>"]}, "expected '<mask>' of type CONTROL or USER"),
        ({"control_symbols": ["&"]}, "expected control symbols of more than one character, got '&'"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_settings_of_the_trainer(setting: dict[str, Any], message: str, tmp_path: Path):
    symbols = setting.pop("user_defined_symbols", ["<mask>", "<start_of_turn>", "<end_of_turn>"])
    options = {"vocab_size": 600, "hard_vocab_limit": False, **setting}
    path = train(tmp_path / "tokenizer.model", symbols=symbols, **options)
    with pytest.raises(ValueError, match=message):
        tokenizer_from_sentencepiece(path)


def _escape(model: Any) -> None:
    model.normalizer_spec.escape_whitespaces = False


def _denormalize(model: Any) -> None:
    model.denormalizer_spec.name = "user_defined"
    model.denormalizer_spec.precompiled_charsmap = b"12345"


def _twice(model: Any) -> None:
    model.pieces.add(piece="<0x41>", score=-1e6, type=NORMAL)


def _no_byte(model: Any) -> None:
    piece(model, "<0x41>").piece = "<0x4>"


def _nul(model: Any) -> None:
    model.pieces.add(piece="a\0b", type=USER_DEFINED)


def _nested(model: Any) -> None:
    for length in range(1, 66):
        model.pieces.add(piece="~" * length, type=USER_DEFINED)


def _tie(model: Any) -> None:
    piece(model, "es").score = piece(model, "ab").score


def _not_a_number(model: Any) -> None:
    piece(model, "es").score = float("nan")


def _unused(model: Any) -> None:
    piece(model, "es").type = UNUSED


def _unused_character(model: Any) -> None:
    piece(model, "e").type = UNUSED


def _no_character(model: Any) -> None:
    model.pieces.add(piece="ÿab", score=-1e6, type=NORMAL)


def _second_unknown(model: Any) -> None:
    model.pieces.add(piece="<unk2>", type=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_escape, "escape_whitespaces: expected True, .* got False"),
        (_denormalize, "denormalizer_spec: expected the identity, got 'user_defined' with 5 bytes"),
        (_twice, r"pieces: expected distinct texts, got '<0x41>' as piece \d+ and as piece \d+\. Remove one"),
        (_no_byte, "expected the 256 bytes .*'<0x41>' is missing or superfluous"),
        (_nul, r"expected texts without NUL, got 'a\\x00b'"),
        (_nested, "at most 64 user-defined symbols that begin alike, got 65"),
        (_tie, "expected distinct scores, .* got -1.0 for 'es' and for 'ab'. Give every piece a score of its own"),
        (_not_a_number, "expected distinct scores, .* got nan for 'es'"),
        (_unused, r"type UNUSED that no text is made of, got 'es' \(piece \d+\), .* splits again"),
        (_unused_character, r"type UNUSED that no text is made of, got 'e' \(piece \d+\), .* releases"),
        (_no_character, r"expected a piece for each character, got none for 'ÿ' of 'ÿab' \(piece \d+\)"),
        (_second_unknown, "expected one piece of type UNKNOWN, got 2"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_altered_models(change: Callable[[Any], None], message: str, small: Converted, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        tokenizer_from_sentencepiece(altered(small.path, tmp_path, change))


def test_the_ways_that_are_refused_do_differ(small: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What raises above is what SentencePiece's ids would be lost with."""
    equal = [("a", 0.0), ("b", 0.0), ("c", 0.0), ("ab", 1.0), ("bc", 1.0)]
    path = write(tmp_path / "tie.model", base=small.path, normal=equal, symbols=[])
    with pytest.raises(ValueError, match="distinct scores"):
        tokenizer_from_sentencepiece(path, chat_template=None)
    processor = Converted.of(small.path).processor
    assert processor.load(str(path))
    # The leftmost of two that are equal, whichever it is: no order of the two pairs gives both.
    assert processor.encode("abc", out_type=str) == ["ab", "c"]
    assert processor.encode("bcab", out_type=str) == ["bc", "ab"]
    pieces = [("a", 0.0), ("b", 0.0), ("ab", 2.0), ("ba", 2.0)]
    processor.load(str(write(tmp_path / "tie.model", base=small.path, normal=pieces, symbols=[])))
    assert processor.encode("aba", out_type=str) == ["ab", "a"]
    assert processor.encode("bab", out_type=str) == ["ba", "b"]


def test_what_does_not_matter_is_not_refused(small: Converted, tmp_path: Path):
    def change(model: Any) -> None:
        model.pieces.add(piece="<unused99>", type=UNUSED)  # '<unused99' is no piece, nor is anything else of it
        model.pieces.add(piece="two words", score=1e6, type=NORMAL)  # a text never holds a space by then
        model.pieces.add(piece="a b", type=USER_DEFINED)
        model.pieces.add(piece="ʘʘ", score=-2.0, type=NORMAL)  # nobody makes it: its score is nobody's
        model.pieces.add(piece="ʘ", type=USER_DEFINED)

    converted = Converted.of(altered(small.path, tmp_path, change))
    texts = ["a b", "a bʘʘʘ", "two words", "<unused99>", "a▁b"]
    assert converted.differences(texts + list(hard_strings(0, converted.pieces(), converted.symbols(), 2000))) == []


def test_models_without_turn_markers_need_no_template(tmp_path: Path):
    path = train(tmp_path / "tokenizer.model", vocab_size=600, symbols=["<mask>"])
    tokenizer = tokenizer_from_sentencepiece(path, chat_template=None)
    assert tokenizer.chat_template is None
    assert len(tokenizer) == 600
    assert "<start_of_turn>" not in tokenizer.get_vocab()


def test_no_file(tmp_path: Path):
    for path in (tmp_path / "tokenizer.model", tmp_path, str(tmp_path / "tokenizer.model")):
        with pytest.raises(FileNotFoundError, match=r"path: expected a SentencePiece model, .* there is no file"):
            tokenizer_from_sentencepiece(path)


def test_truncated_files_never_convert(small: Converted, tmp_path: Path):
    whole = small.path.read_bytes()
    path = tmp_path / "tokenizer.model"
    for size in [*range(200), *range(200, len(whole) - 400, 97), *range(len(whole) - 400, len(whole))]:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="expected"):
            tokenizer_from_sentencepiece(path)
    path.write_bytes(whole)
    assert len(tokenizer_from_sentencepiece(path)) == len(small.tokenizer)


@pytest.mark.parametrize(
    "content", [b"{}", b"PK\x03\x04", b"\x80\x04K\x01.", b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_other_files(content: bytes, tmp_path: Path):
    require("sentencepiece")
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"path: expected a SentencePiece model.* another kind of file, or incomplete"):
        tokenizer_from_sentencepiece(path)


@pytest.mark.parametrize("absent", ["sentencepiece", "google.protobuf"])
def test_missing_libraries_are_named(absent: str, small: Converted, monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name == absent or name.startswith(f"{absent}.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(ImportError, match=r'pip install "recurrent-gemma\[convert\]"'):
        tokenizer_from_sentencepiece(small.path)
