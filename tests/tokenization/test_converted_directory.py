"""The files of a converted model: what is in them, who reads them, and that all readers agree."""

import json
import shutil
from pathlib import Path

import pytest
import transformers
from transformers import AutoTokenizer, GemmaTokenizer
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from recurrent_gemma import RecurrentGemmaConfig
from recurrent_gemma.tokenization import CHAT_TEMPLATE, RecurrentGemmaTokenizer
from tests.tokenization.conftest import Converted
from tests.tokenization.texts import CONTROL, HAND_WRITTEN, all_of_unicode, hard_strings


@pytest.fixture(scope="module")
def ours(converted_directory: Path) -> RecurrentGemmaTokenizer:
    return RecurrentGemmaTokenizer.from_pretrained(converted_directory)


@pytest.fixture(scope="module")
def gemmas(converted_directory: Path) -> GemmaTokenizer:
    return GemmaTokenizer.from_pretrained(converted_directory)


def test_files(converted_directory: Path, large: Converted, ours: RecurrentGemmaTokenizer, tmp_path: Path):
    names = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert {path.name for path in converted_directory.iterdir()} == names
    assert (converted_directory / "chat_template.jinja").read_text(encoding="utf-8") == CHAT_TEMPLATE
    assert ours.get_vocab() == large.tokenizer.get_vocab()
    assert ours.added_tokens_decoder == large.tokenizer.added_tokens_decoder
    ours.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (converted_directory / name).read_bytes()


def test_special_tokens(ours: RecurrentGemmaTokenizer, gemmas: GemmaTokenizer, large: Converted):
    for tokenizer in (ours, gemmas):
        ids = tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id
        assert ids == (0, 1, 2, 3)
        assert tokenizer.padding_side == "left"
        # A state of constant size has no limit; this is the number that Transformers' users know to mean it.
        assert tokenizer.model_max_length == VERY_LARGE_INTEGER
        special = [*CONTROL, "<mask>", "<start_of_turn>", "<end_of_turn>"]
        assert set(tokenizer.all_special_tokens) == set(special)
        flagged = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
        assert flagged == set(special)
    assert ours.convert_tokens_to_ids(special) == [large.processor.piece_to_id(token) for token in special]


@pytest.mark.parametrize("add_special_tokens", [True, False])
@pytest.mark.parametrize("split_special_tokens", [True, False])
def test_ours_and_gemmas_class_agree(
    add_special_tokens: bool,
    split_special_tokens: bool,
    ours: RecurrentGemmaTokenizer,
    gemmas: GemmaTokenizer,
    large: Converted,
):
    texts = HAND_WRITTEN + all_of_unicode()[::3]
    texts += hard_strings(5, [*large.pieces(), *CONTROL], [*large.symbols(), *CONTROL], 5000)
    texts += ["a<bos>b", "<pad><eos><mask> <unk>", "<start_of_turn><bos>"]
    texts = [text for text in texts if not text.startswith("<bos>")]
    options = {"add_special_tokens": add_special_tokens, "split_special_tokens": split_special_tokens}
    for given in (texts, list(zip(texts, reversed(texts), strict=True))):
        encoded, theirs = (tokenizer(given, return_offsets_mapping=True, **options) for tokenizer in (ours, gemmas))
        assert encoded.input_ids == theirs.input_ids
        assert encoded.offset_mapping == theirs.offset_mapping
    for skip in (True, False):
        # Where bytes are no text, Gemma's class loses the characters beside them as well.
        assert ours.batch_decode(encoded.input_ids, skip_special_tokens=skip) == gemmas.batch_decode(
            encoded.input_ids, skip_special_tokens=skip
        )


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("RecurrentGemmaTokenizer", RecurrentGemmaTokenizer),
        (None, RecurrentGemmaTokenizer),
        ("GemmaTokenizer", transformers.GemmaTokenizer),
    ],
)
def test_auto_tokenizer_takes_the_class_that_is_named(
    named: str | None, expected: type, converted_directory: Path, large: Converted, tmp_path: Path
):
    directory = shutil.copytree(converted_directory, tmp_path / "copy")
    RecurrentGemmaConfig(num_hidden_layers=3, hidden_size=32, num_attention_heads=4).save_pretrained(directory)
    file = directory / "tokenizer_config.json"
    fields = json.loads(file.read_text())
    assert fields.pop("tokenizer_class") == "RecurrentGemmaTokenizer"
    file.write_text(json.dumps(fields if named is None else fields | {"tokenizer_class": named}))
    loaded = AutoTokenizer.from_pretrained(directory)
    assert type(loaded) is expected
    assert loaded(HAND_WRITTEN).input_ids == [[2, *ids] for ids in large.processor.encode(HAND_WRITTEN)]


def test_a_long_text_is_neither_cut_nor_warned_about(ours: RecurrentGemmaTokenizer, large: Converted):
    text = "In the beginning God created the heaven and the earth.\n" * 4000
    assert ours(text, truncation=True).input_ids == [2, *large.processor.encode(text)]
