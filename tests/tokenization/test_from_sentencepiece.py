"""A converted SentencePiece model gives SentencePiece's ids, pieces, offsets and texts."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from recurrent_gemma.tokenization import RecurrentGemmaTokenizer
from tests.tokenization.conftest import Converted
from tests.tokenization.sentencepiece_models import proto, random_pieces, train, write
from tests.tokenization.texts import CONTROL, HAND_WRITTEN, all_of_unicode, hard_strings, without_control


def test_every_piece_keeps_its_id(trained: Converted):
    pieces = [piece.piece for piece in proto(trained.path).pieces]
    assert trained.tokenizer.convert_ids_to_tokens(list(range(len(pieces)))) == pieces
    assert len(trained.tokenizer) == trained.tokenizer.vocab_size == len(pieces)


def test_hand_written_texts(trained: Converted):
    assert trained.differences(HAND_WRITTEN) == []


def test_all_of_unicode(trained: Converted):
    assert trained.differences(all_of_unicode()) == []


def test_every_piece_alone_and_beside_others(trained: Converted):
    pieces = [text for piece in trained.pieces() if (text := without_control(piece))]
    joined = random.Random(0).sample(pieces, len(pieces))
    texts = [*pieces, *map("".join, zip(pieces, joined, strict=True)), "".join(pieces), "".join(joined)]
    assert trained.differences([text.replace("▁", " ") for text in texts] + texts) == []


def test_a_hundred_thousand_hard_strings(small: Converted, large: Converted, hard: Converted):
    for seed, converted in enumerate((small, large, hard)):
        texts = list(hard_strings(seed, converted.pieces(), converted.symbols(), 34_000))
        assert converted.differences(texts) == []


@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.text("ab ▁\nthe<>é日x0"))
@hypothesis_settings(max_examples=1500)
def test_any_text(hard: Converted, large: Converted, text: str):
    for converted in (hard, large):
        assert converted.differences([without_control(text)]) == []


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("alphabet", ["ab", "▁ab", "abcdef", "aé日😀"])
def test_models_that_no_training_made(small: Converted, alphabet: str, closed: bool, tmp_path: Path):
    for seed, (count, longest, n_symbols) in enumerate([(5, 3, 0), (20, 6, 3), (60, 12, 0), (300, 8, 10)]):
        rng = random.Random(seed)
        normal = random_pieces(rng, alphabet=alphabet, count=count, longest=longest, closed=closed)
        texts = {text for text, _ in normal}
        symbols = {"".join(rng.choices(alphabet, k=rng.randint(1, 4))) for _ in range(n_symbols)} - texts
        path = write(tmp_path / f"{seed}.model", base=small.path, normal=normal, symbols=sorted(symbols))
        converted = Converted.of(path, chat_template=None)
        assert converted.differences(list(hard_strings(seed, converted.pieces(), sorted(symbols), 1000))) == []


def test_characters_without_a_piece_are_joined_all_the_same(small: Converted, tmp_path: Path):
    normal = [("a", 0.0), ("b", 0.0), ("\t\t", 4.0), ("\t\ta", 5.0), ("ax", 3.0), ("xb", 2.0), ("axb", 1.0), ("é", 0.0)]
    path = write(tmp_path / "model", base=small.path, normal=normal, symbols=["\t\t\t\t"])
    converted = Converted.of(path, chat_template=None)
    texts = list(hard_strings(0, ["\t", "x", "ax", "b", "é", "日", "<0x09>"], ["\t\t\t\t"], 3000))
    assert converted.differences([*texts, "\t", "x", "\t\t", "\t\t\ta", "xbaxb", "<0x09>"]) == []
    ids = list(range(len(converted.tokenizer)))
    assert [converted.tokenizer.decode([i, i], skip_special_tokens=True) for i in ids if i not in (3, 4)] == [
        converted.processor.decode([i, i]) for i in ids if i not in (3, 4)
    ]


def test_how_a_piece_is_made_does_not_depend_on_what_is_beside_it(tmp_path: Path, small: Converted):
    # "aba" has two splits. Which one is used is up to the scores alone: alone, after a "b", and in a run.
    for ab, ba in ((2.0, 1.0), (1.0, 2.0)):
        normal = [("a", 0.0), ("b", 0.0), ("ab", ab), ("ba", ba), ("aba", 0.5), ("bab", 0.25), ("abaaba", 3.0)]
        path = write(tmp_path / f"{ab}.model", base=small.path, normal=normal, symbols=[])
        converted = Converted.of(path, chat_template=None)
        texts = ["".join("ab"[i >> k & 1] for k in range(length)) for length in range(1, 13) for i in range(2**length)]
        assert converted.differences(texts) == []


@pytest.mark.parametrize("name", ["small", "large"])
def test_offsets(name: str, request: pytest.FixtureRequest):
    converted: Converted = request.getfixturevalue(name)
    for text, _, ours in _with_offsets(converted):
        starts = [0]  # at each byte, the character that it belongs to
        for position, character in enumerate(text):
            starts[-1:] = [position] * len(character.encode()) + [position + 1]
        theirs: list[tuple[int, int]] = []
        for piece in reversed(converted.processor.encode(text, return_type="proto").pieces):
            begin, end = starts[piece.begin], starts[piece.end]
            # SentencePiece gives a character's span to the last of its bytes and an empty one to the others.
            theirs.append(theirs[-1] if begin == end else (begin, end))
        assert ours == theirs[::-1]


def test_offsets_are_where_a_piece_stands(trained: Converted):
    # SentencePiece's own are off where a symbol with U+2581 and another one overlap, as in `hard`.
    for text, pieces, offsets in _with_offsets(trained):
        for piece, (start, end) in zip(pieces, offsets, strict=True):
            assert text[start:end].replace(" ", "▁") == piece or (piece.startswith("<0x") and end == start + 1)
        assert "".join(text[start:end] for start, end in dict.fromkeys(offsets)) == text


def _with_offsets(converted: Converted) -> Iterator[tuple[str, list[str], list[tuple[int, int]]]]:
    texts = [text for text in HAND_WRITTEN + all_of_unicode()[::7] if "▁" not in text]
    texts += [text.replace("▁", " ") for text in hard_strings(3, converted.pieces(), converted.symbols(), 3000)]
    texts = [without_control(text) for text in texts]
    encoded = converted.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    for i, text in enumerate(texts):
        yield text, encoded.tokens(i), encoded.offset_mapping[i]


def test_decoding_gives_sentencepieces_text(trained: Converted):
    texts = HAND_WRITTEN + all_of_unicode()[::7]
    for text in texts:
        ids = trained.processor.encode(text)
        decoded = trained.tokenizer.decode(ids)
        assert decoded == trained.processor.decode(ids) == text.replace("▁", " ")


def test_decoding_any_ids(trained: Converted):
    tokenizer, rng = trained.tokenizer, random.Random(0)
    # Where the two differ on purpose: an unknown token, and special tokens that are user-defined in SentencePiece.
    kept = sorted(set(range(len(tokenizer))) - {tokenizer.unk_token_id, tokenizer.mask_token_id, *_turns(tokenizer)})
    byte_ids = tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in range(256)])
    for _ in range(3000):
        ids = [rng.choice(rng.choice([kept, byte_ids, byte_ids[0x80:], [0, 2]])) for _ in range(rng.randrange(12))]
        assert tokenizer.decode(ids, skip_special_tokens=True) == trained.processor.decode(ids)


@pytest.mark.parametrize(
    "values",
    [
        b"\xe3\x81\x82\xff",
        b"\xe3\x81",
        b"\xff\xe3\x81\x82",
        b"\xed\xa0\x80",
        b"\xc0\x80",
        b"\xf4\x90\x80\x80",
        b"\xe3A\x81",
    ],
)
def test_decoding_bytes_that_are_no_text(small: Converted, values: bytes):
    ids = small.tokenizer.convert_tokens_to_ids([f"<0x{byte:02X}>" for byte in values])
    assert small.tokenizer.decode(ids) == small.processor.decode(ids)
    assert small.tokenizer.batch_decode([ids, ids]) == [small.processor.decode(ids)] * 2
    assert small.tokenizer.decode(ids[0]) == small.processor.decode(ids[:1])


def test_control_symbols_are_found_in_texts_and_split_on_request(large: Converted):
    tokenizer, processor = large.tokenizer, large.processor
    for symbol in CONTROL:
        text = f"the {symbol} earth"
        expected = [*processor.encode("the "), processor.piece_to_id(symbol), *processor.encode(" earth")]
        assert tokenizer(text, add_special_tokens=False).input_ids == expected
        plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert plain == processor.encode(text)
        assert tokenizer.decode(plain, skip_special_tokens=True) == text
    # Special tokens that SentencePiece takes for user-defined symbols are plain text then as well.
    turn = tokenizer("<start_of_turn>", add_special_tokens=False, split_special_tokens=True).input_ids
    assert len(turn) > 1 and processor.encode("<start_of_turn>") == [tokenizer.convert_tokens_to_ids("<start_of_turn>")]


def test_a_control_symbol_of_another_name_is_found_and_skipped(tmp_path: Path):
    converted = Converted.of(train(tmp_path / "m", vocab_size=800, control_symbols=["<sep>"]))
    ids = converted.tokenizer("a<sep>b", add_special_tokens=False).input_ids
    assert converted.tokenizer.convert_ids_to_tokens(ids) == ["a", "<sep>", "b"]
    assert converted.tokenizer.decode(ids, skip_special_tokens=True) == converted.processor.decode(ids) == "ab"


@pytest.mark.parametrize(
    ("given_text", "in_words"),
    [
        ("a \ud800b", False),
        (["the", "a \ud800b"], False),
        ([("the", "a \ud800b")], False),
        ([["the", "a \ud800b"]], True),
    ],
)
def test_lone_surrogates_raise(large: Converted, given_text: Any, in_words: bool):
    with pytest.raises(ValueError, match=r"text: expected Unicode text, .* surrogate '\\ud800' at character 2 of"):
        large.tokenizer(given_text, is_split_into_words=in_words)
    with pytest.raises(ValueError, match=r"text: expected Unicode text"):
        large.tokenizer("the", "a \ud800b")


def test_what_is_no_text_raises_as_ever(large: Converted):
    with pytest.raises(TypeError, match="TextEncodeInput"):
        large.tokenizer(["the", 7])


def _turns(tokenizer: RecurrentGemmaTokenizer) -> list[int]:
    return tokenizer.convert_tokens_to_ids(["<start_of_turn>", "<end_of_turn>"])
