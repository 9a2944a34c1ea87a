"""The tokenizer: what goes in comes out, one BOS, left padding, and equality with Gemma's."""

import json
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GemmaTokenizer

from recurrent_gemma.tokenization import RecurrentGemmaTokenizer

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
TEXTS = [
    "",
    " ",
    "In the beginning God created the heaven and the earth.",
    "  leading, trailing  and    long" + " " * 40 + "whitespace  ",
    "lines\nand\r\nmore\n\n\nlines\n",
    "tabs\tand\vcontrol\x00\x01\x1f\x7fcharacters",
    "naïve café — «quotes» … ½ ﬁ İ ß",
    "日本語 العربية עברית ไทย हिन्दी",
    "👩‍👩‍👧 🇬🇧 e\u0301 \ufeff\u200b\u2028",
    "1776 and 3.14159, 2024-02-29",
    "a ▁ b",
]


@pytest.fixture(scope="module")
def tokenizer() -> RecurrentGemmaTokenizer:
    """Gemma's layout in small: special tokens, 256 bytes, pieces."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?\p{L}+|\d|\n+|▁?[^\p{L}\d\n▁]+|▁"), behavior="isolated")
    text = "In the beginning God created the heaven and the earth. 0123456789\nmodel user hello, there; a b c\n\n"
    learner.train_from_iterator([text] * 3, trainers.BpeTrainer(vocab_size=100, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    pieces = SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)] + sorted(learned["vocab"], key=learned["vocab"].get)
    return RecurrentGemmaTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=[tuple(merge) for merge in learned["merges"]],
        extra_special_tokens=["<start_of_turn>", "<end_of_turn>"],
    )


@pytest.fixture(scope="module")
def directory(tokenizer: RecurrentGemmaTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("text", TEXTS)
def test_decoding_gives_the_text_back(tokenizer: RecurrentGemmaTokenizer, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert ids[0] == 2
    assert tokenizer.unk_token_id not in ids
    # U+2581 is how spaces are written, in SentencePiece too: it can't come back as itself.
    assert tokenizer.decode(ids, skip_special_tokens=True) == text.replace("▁", " ")


def test_special_ids_are_gemmas(tokenizer: RecurrentGemmaTokenizer) -> None:
    ids = tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id
    assert ids == (0, 1, 2, 3)
    turns = tokenizer("<start_of_turn>a<end_of_turn>", add_special_tokens=False)
    assert turns.input_ids == [5, *tokenizer("a", add_special_tokens=False).input_ids, 6]
    assert {5, 6} <= set(tokenizer.all_special_ids)


def test_spaces_digits_and_unknown_characters(tokenizer: RecurrentGemmaTokenizer) -> None:
    assert tokenizer.tokenize("In the beginning") == ["In", "▁the", "▁beginning"]
    assert tokenizer.tokenize("the 1776") == ["the", "▁", "1", "7", "7", "6"]
    assert tokenizer.tokenize("é\t") == ["<0xC3>", "<0xA9>", "<0x09>"]


@pytest.mark.parametrize("text", ["hello", "<bos>hello", "<bos>", "", "hello<bos>", "<bos> hello", "<eos><bos>hello"])
def test_one_bos_whatever_the_text_starts_with(tokenizer: RecurrentGemmaTokenizer, text: str) -> None:
    expected = tokenizer(text, add_special_tokens=False).input_ids
    expected = expected if text.startswith("<bos>") else [2, *expected]
    assert tokenizer(text).input_ids == expected
    assert tokenizer.encode(text) == expected
    assert tokenizer([text, text]).input_ids == [expected, expected]
    assert tokenizer([text], is_split_into_words=True).input_ids == expected
    assert tokenizer(text, return_tensors="pt").input_ids.tolist() == [expected]
    assert tokenizer(text, truncation=True, max_length=3).input_ids == expected[:3]


def test_a_batch_may_mix_texts_with_and_without_bos(tokenizer: RecurrentGemmaTokenizer) -> None:
    with_bos, without = tokenizer(["<bos>hello", "hello"]).input_ids
    assert with_bos == without
    pairs = tokenizer([("<bos>a", "<bos>b"), ("a", "b")]).input_ids
    assert pairs[0] == pairs[1]
    words = tokenizer([["<bos>the", " earth"], ["the", " earth"]], is_split_into_words=True).input_ids
    assert words[0] == words[1] == tokenizer("the earth").input_ids


def test_bos_stays_text_where_special_tokens_are_split(tokenizer: RecurrentGemmaTokenizer) -> None:
    ids = tokenizer("<bos>a", split_special_tokens=True).input_ids
    assert ids[0] == 2
    assert 2 not in ids[1:]
    assert tokenizer.decode(ids[1:]) == "<bos>a"


def test_offsets_of_a_text_with_bos_raise_and_others_hold(tokenizer: RecurrentGemmaTokenizer) -> None:
    with pytest.raises(ValueError, match=r"return_offsets_mapping.*'<bos>'.*add_special_tokens=False"):
        tokenizer("<bos>the earth", return_offsets_mapping=True)
    text = "<bos>the earth"
    offsets = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False).offset_mapping
    assert [text[start:end] for start, end in offsets] == ["<bos>", "the", " earth"]


def test_padding_is_on_the_left(tokenizer: RecurrentGemmaTokenizer) -> None:
    batch = tokenizer(["the", "the heaven and the earth"], padding=True)
    missing = len(batch.input_ids[1]) - 2
    assert batch.input_ids[0] == [0] * missing + [2, *tokenizer("the", add_special_tokens=False).input_ids]
    assert batch.attention_mask[0] == [0] * missing + [1, 1]


def test_saved_and_loaded_is_the_same(tokenizer: RecurrentGemmaTokenizer, directory: Path, tmp_path: Path) -> None:
    loaded = RecurrentGemmaTokenizer.from_pretrained(directory)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert len(loaded) == len(tokenizer)
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.all_special_ids == tokenizer.all_special_ids
    assert loaded(TEXTS).input_ids == tokenizer(TEXTS).input_ids
    loaded.save_pretrained(tmp_path)
    names = {path.name for path in directory.iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert (tmp_path / "tokenizer.json").read_bytes() == (directory / "tokenizer.json").read_bytes()


def test_equal_to_transformers_gemma_tokenizer(directory: Path) -> None:
    ours = RecurrentGemmaTokenizer.from_pretrained(directory)
    theirs = GemmaTokenizer.from_pretrained(directory)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours(TEXTS).input_ids == theirs(TEXTS).input_ids
    pairs = [(a, b) for a, b in zip(TEXTS, reversed(TEXTS), strict=True)]
    assert ours(pairs).input_ids == theirs(pairs).input_ids


def test_flags_say_what_the_file_does(tokenizer: RecurrentGemmaTokenizer, directory: Path, tmp_path: Path) -> None:
    loaded = RecurrentGemmaTokenizer.from_pretrained(directory)
    assert (loaded.add_bos_token, loaded.add_eos_token) == (True, False)
    loaded.add_eos_token = True
    body = tokenizer("the", add_special_tokens=False).input_ids
    assert loaded("the").input_ids == [2, *body, 1]
    loaded.add_bos_token = False
    assert loaded("the").input_ids == [*body, 1]
    loaded.save_pretrained(tmp_path)
    again = RecurrentGemmaTokenizer.from_pretrained(tmp_path)
    assert (again.add_bos_token, again.add_eos_token) == (False, True)
    assert again("<bos>the").input_ids == [2, *body, 1]


def test_a_file_is_taken_as_it_is(directory: Path, tmp_path: Path) -> None:
    backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), backend.normalizer])
    backend.save(str(tmp_path / "tokenizer.json"))
    loaded = RecurrentGemmaTokenizer.from_pretrained(tmp_path)
    assert loaded.tokenize("THE Earth") == ["the", "▁earth"]


def test_a_file_without_a_template_gets_one_bos(directory: Path, tmp_path: Path) -> None:
    content = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    content["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert RecurrentGemmaTokenizer.from_pretrained(tmp_path)("the").input_ids[0] == 2
    path = str(tmp_path / "tokenizer.json")
    assert RecurrentGemmaTokenizer(tokenizer_file=path)("the").input_ids[0] == 2
    assert RecurrentGemmaTokenizer(tokenizer_object=Tokenizer.from_file(path))("the").input_ids[0] == 2
    content["post_processor"] = json.loads(
        processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[]).__getstate__()
    )
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert 2 not in RecurrentGemmaTokenizer.from_pretrained(tmp_path)("the").input_ids
