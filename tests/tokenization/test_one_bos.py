"""Exactly one BOS, in every way that texts reach the tokenizer, lm-evaluation-harness's among them."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from recurrent_gemma import RecurrentGemmaConfig
from recurrent_gemma.tokenization import RecurrentGemmaTokenizer
from tests.tokenization.conftest import Converted

TEXTS = ["the earth", "<bos>the earth", "", "<bos>", " the", "<start_of_turn>user\nthe<end_of_turn>\n"]
CHAT = [{"role": "user", "content": "the earth"}]


@pytest.fixture(scope="module")
def tokenizer(large: Converted) -> RecurrentGemmaTokenizer:
    return large.tokenizer


@pytest.mark.parametrize("text", TEXTS)
def test_texts(tokenizer: RecurrentGemmaTokenizer, large: Converted, text: str):
    body = large.processor.encode(text.removeprefix("<bos>"))
    assert tokenizer(text).input_ids == tokenizer.encode(text) == [2, *body]
    without = tokenizer(text, add_special_tokens=False).input_ids
    assert without == ([2, *body] if text.startswith("<bos>") else body)


def test_chats(tokenizer: RecurrentGemmaTokenizer):
    encoded = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=True).input_ids
    rendered = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert encoded == tokenizer(rendered).input_ids == tokenizer(rendered, add_special_tokens=False).input_ids
    assert encoded[0] == 2 and encoded.count(2) == 1


class Harness:
    """How ``HFLM`` and ``TemplateLM`` of lm-evaluation-harness 0.4.13 call a tokenizer.

    Source: ``tok_encode``, ``tok_batch_encode`` and ``apply_chat_template`` in ``lm_eval/models/huggingface.py``,
    ``_encode_pair`` in ``lm_eval/api/model.py``.
    """

    def __init__(self, directory: Path, *, add_bos_token: bool | None) -> None:
        options = {} if add_bos_token is None else {"add_bos_token": add_bos_token}
        self.add_bos_token = add_bos_token
        self.tokenizer = AutoTokenizer.from_pretrained(directory, use_fast=True, trust_remote_code=False, **options)

    def encode(self, text: str, add_special_tokens: bool | None = None) -> list[int]:
        flag = self.add_bos_token if add_special_tokens is None else add_special_tokens
        if add_special_tokens is None and text.startswith(self.tokenizer.decode(self.tokenizer.bos_token_id)):
            flag = False
        return self.tokenizer.encode(text, **({} if flag is None else {"add_special_tokens": flag}))

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        kept = context.rstrip()
        whole, start = self.encode(context + continuation), self.encode(kept)
        return start, whole[len(start) :]

    def encode_batch(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        flag = False if texts[0].startswith(self.tokenizer.bos_token) else self.add_bos_token
        options = {} if flag is None else {"add_special_tokens": flag}
        self.tokenizer.padding_side = "left"
        encoded = self.tokenizer(texts, truncation=False, padding="longest", return_tensors="pt", **options)
        return encoded["input_ids"], encoded["attention_mask"]


@pytest.fixture(params=[None, True, False])
def harness(request: pytest.FixtureRequest, converted_directory: Path, tmp_path: Path) -> Harness:
    return Harness(converted_directory, add_bos_token=request.param)


def test_harness_encodes(harness: Harness, large: Converted):
    for text in TEXTS:
        body, has_bos = large.processor.encode(text.removeprefix("<bos>")), text.startswith("<bos>")
        assert harness.encode(text) == ([2] if has_bos or harness.add_bos_token is not False else []) + body
        assert harness.encode(text, add_special_tokens=False) == [2] * has_bos + body
        # The one combination that asks for two, of an explicit True and a text that has it, gives one.
        expected = [2] if has_bos or harness.add_bos_token is not False else []
        assert harness.encode(text, add_special_tokens=True) == expected + body


def test_harness_encodes_pairs(harness: Harness, large: Converted):
    for context in (
        "In the beginning ",
        "<bos>In the beginning",
        harness.tokenizer.apply_chat_template(CHAT, tokenize=False),
    ):
        start, rest = harness.encode_pair(context, " God created")
        body = large.processor.encode((context + " God created").removeprefix("<bos>"))
        has_bos = context.startswith("<bos>") or harness.add_bos_token is not False
        assert start + rest == [2] * has_bos + body
        assert (start + rest).count(2) == has_bos


def test_harness_encodes_batches(harness: Harness, large: Converted):
    for texts in (["the earth", "In the beginning God"], ["<bos>the earth", "<bos>In the beginning God"]):
        ids, mask = harness.encode_batch(texts)
        has_bos = texts[0].startswith("<bos>") or harness.add_bos_token is not False
        for text, row, seen in zip(texts, ids, mask, strict=True):
            assert row[seen.bool()].tolist() == [2] * has_bos + large.processor.encode(text.removeprefix("<bos>"))
            assert seen.tolist() == sorted(seen.tolist())
            assert row[~seen.bool()].tolist() == [0] * int((1 - seen).sum())


def test_harness_renders_chats(harness: Harness):
    prompt = harness.tokenizer.apply_chat_template(
        CHAT, tokenize=False, add_generation_prompt=True, continue_final_message=False
    )
    assert harness.encode(prompt).count(2) == 1
    few = [*CHAT, {"role": "assistant", "content": "The"}]
    begun = harness.tokenizer.apply_chat_template(
        few, tokenize=False, add_generation_prompt=False, continue_final_message=True
    )
    assert begun == f"{prompt}The"


def test_no_limit_of_length_is_found_but_the_default(converted_directory: Path):
    # `resolve_max_length` looks for these, and takes its own default where `model_max_length` is this number.
    config = RecurrentGemmaConfig(num_hidden_layers=3, hidden_size=32, num_attention_heads=4)
    assert not any(hasattr(config, name) for name in ("n_positions", "max_position_embeddings", "n_ctx"))
    loaded = AutoTokenizer.from_pretrained(converted_directory)
    assert loaded.model_max_length == 1000000000000000019884624838656
