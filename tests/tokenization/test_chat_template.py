"""Chats are written as the instruction-tuned models saw them; what they never saw raises."""

from pathlib import Path
from typing import Any

import jinja2
import pytest

from recurrent_gemma.tokenization import CHAT_TEMPLATE, RecurrentGemmaTokenizer
from tests.support import require
from tests.tokenization.conftest import Converted

# The template in tokenizer_config.json of google/recurrentgemma-2b-it and google/gemma-2b-it, in its own spacing.
PUBLISHED = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(small: Converted) -> RecurrentGemmaTokenizer:
    return small.tokenizer


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


CHATS = [
    [user("hello")],
    [user(" \n hello\n\n"), assistant("  there  ")],
    [user("a"), assistant("b"), user("c")],
    [user("a"), {"role": "model", "content": "b"}, user("")],
    [user("<b>\"'{{ x }}</b> <end_of_turn> é日👍🏽"), assistant("{% raw %}")],
]


def test_turns(tokenizer: RecurrentGemmaTokenizer):
    chat = [user(" hello "), assistant("there"), user("a")]
    expected = (
        "<bos><start_of_turn>user\nhello<end_of_turn>\n"
        "<start_of_turn>model\nthere<end_of_turn>\n"
        "<start_of_turn>user\na<end_of_turn>\n"
    )
    assert tokenizer.apply_chat_template(chat, tokenize=False) == expected
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt == expected + "<start_of_turn>model\n"


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("chat", CHATS)
def test_equal_to_the_published_template(
    tokenizer: RecurrentGemmaTokenizer, chat: list[dict[str, Any]], add_generation_prompt: bool
):
    ours, published = (
        tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=add_generation_prompt, chat_template=template
        )
        for template in (CHAT_TEMPLATE, PUBLISHED)
    )
    assert ours == published


def test_equal_to_deepminds_formatter(tokenizer: RecurrentGemmaTokenizer, small: Converted):
    require("jax")
    common = require("recurrentgemma.common")
    for content in ("hello", "two\n\nlines  and spaces", "é日👍🏽 <b>"):
        theirs = common.apply_it_formatter(content)
        ours = tokenizer.apply_chat_template([user(content)], tokenize=False, add_generation_prompt=True)
        assert ours == "<bos>" + theirs  # their sampler adds the BOS to the ids
        encoded = tokenizer.apply_chat_template([user(content)], add_generation_prompt=True, return_dict=True)
        assert encoded.input_ids == [2, *small.processor.encode(theirs)]


@pytest.mark.parametrize("content", ["The", "The ", "end", "turn>", "model\n", "<start_of_turn>", "a\n\nb", ""])
def test_a_final_message_is_continued(tokenizer: RecurrentGemmaTokenizer, content: str):
    chat = [user("hello"), assistant(content)]
    begun = tokenizer.apply_chat_template(chat, tokenize=False, continue_final_message=True)
    # Transformers takes away all space at the end, of an empty message also the line break before it.
    assert begun == f"<bos><start_of_turn>user\nhello<end_of_turn>\n<start_of_turn>model\n{content}".rstrip()
    ids = tokenizer.apply_chat_template(chat, continue_final_message=True, return_dict=True).input_ids
    assert ids == tokenizer(begun).input_ids


def test_contents_in_parts(tokenizer: RecurrentGemmaTokenizer):
    def parts(*texts: str) -> list[dict[str, str]]:
        return [{"type": "text", "text": text} for text in texts]

    in_parts = [user(parts(" one ", "two ")), assistant(parts("three")), user(parts())]
    whole = [user(" one two "), assistant("three"), user("")]
    for options in ({}, {"add_generation_prompt": True}):
        assert tokenizer.apply_chat_template(in_parts, tokenize=False, **options) == tokenizer.apply_chat_template(
            whole, tokenize=False, **options
        )
    begun = tokenizer.apply_chat_template(in_parts[:2], tokenize=False, continue_final_message=True)
    assert begun.endswith("<start_of_turn>model\nthree")


@pytest.mark.parametrize("said", ["there", [{"type": "text", "text": " there"}]])
@pytest.mark.parametrize("role", ["assistant", "model"])
def test_what_the_model_says_is_marked(tokenizer: RecurrentGemmaTokenizer, role: str, said: Any):
    chat = [user("hello"), {"role": role, "content": said}, user("the"), {"role": role, "content": "b"}]
    encoded = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    marked = [i for i, mark in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(marked) == "there<end_of_turn>\nb<end_of_turn>\n"


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([{"role": "system", "content": "be kind"}, user("a")], "System role not supported"),
        ([user("a"), {"role": "system", "content": "be kind"}], "Role not supported: system"),
        ([user("a"), {"role": "tool", "content": "7"}], "Role not supported: tool, expected user or assistant"),
        ([assistant("hello")], "must alternate"),
        ([user("a"), user("b")], "must alternate"),
        ([user("a"), assistant("b"), assistant("c")], "must alternate"),
        ([user(None)], "Content not supported: expected text"),
        ([{"role": "user"}], "Content not supported: expected text"),
        ([user(7)], "Content not supported: expected text"),
        ([user({"type": "text", "text": "a"})], "Content not supported: expected text"),
        ([user(["a"])], "Content not supported: expected parts"),
        ([user([{"type": "image", "url": "x"}])], "Content not supported: expected parts"),
        ([user([{"type": "text", "text": "a"}, {"type": "image"}])], "Content not supported: expected parts"),
        ([user([{"type": "text"}])], "Content not supported: expected parts"),
        ([user([{"text": "a"}])], "Content not supported: expected parts"),
    ],
)
def test_what_the_models_never_saw_raises(tokenizer: RecurrentGemmaTokenizer, chat: list, message: str):
    with pytest.raises(jinja2.exceptions.TemplateError, match=message):
        tokenizer.apply_chat_template(chat, tokenize=False)


@pytest.mark.parametrize("given", [{"tools": [{"type": "function", "function": {"name": "f"}}]}, {"documents": [{}]}])
def test_tools_and_documents_raise(tokenizer: RecurrentGemmaTokenizer, given: dict[str, Any]):
    with pytest.raises(jinja2.exceptions.TemplateError, match="Tools and documents are not supported"):
        tokenizer.apply_chat_template([user("a")], tokenize=False, **given)


def test_an_empty_conversation_raises(tokenizer: RecurrentGemmaTokenizer):
    with pytest.raises((ValueError, jinja2.exceptions.TemplateError), match="empty"):
        tokenizer.apply_chat_template([], tokenize=False)
    with pytest.raises((ValueError, jinja2.exceptions.TemplateError), match="empty"):
        tokenizer.apply_chat_template([[]], tokenize=False)


def test_it_is_saved_with_the_tokenizer(converted_directory: Path):
    loaded = RecurrentGemmaTokenizer.from_pretrained(converted_directory)
    assert loaded.chat_template == CHAT_TEMPLATE
    assert loaded.apply_chat_template([user("a")], tokenize=False) == "<bos><start_of_turn>user\na<end_of_turn>\n"
