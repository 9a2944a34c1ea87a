"""The tokenizer of the family: Gemma's byte-level-fallback BPE, with exactly one BOS.

Source: the tokenizer files published with RecurrentGemma and Gemma, and Transformers' ``GemmaTokenizer``.
"""

import codecs
import json
import os
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from tokenizers import Tokenizer, decoders
from transformers import BatchEncoding, GemmaTokenizer

from recurrent_gemma.configuration.remote_code import names_shim, write_shim

BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))
TURN_MARKERS = ("<start_of_turn>", "<end_of_turn>")

# As Gemma's published template, but for what that would pass over in silence and here raises: contents that are no
# text, roles that the models never saw, tools. The `generation` block marks what the model says, for
# `return_assistant_tokens_mask` and losses built on it.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- if not messages -%}
    {{- raise_exception('The conversation is empty: expected at least one message') -}}
{%- endif -%}
{%- if messages[0]['role'] == 'system' -%}
    {{- raise_exception('System role not supported') -}}
{%- endif -%}
{%- if tools or documents -%}
    {{- raise_exception('Tools and documents are not supported: put them into the text of a message') -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
    {%- endif -%}
    {%- if message['role'] not in ['user', 'assistant', 'model'] -%}
        {{- raise_exception('Role not supported: ' ~ message['role'] ~ ', expected user or assistant') -}}
    {%- endif -%}
    {%- set content = namespace(text='') -%}
    {%- if message['content'] is string -%}
        {%- set content.text = message['content'] -%}
    {%- elif message['content'] is defined and message['content'] is sequence and message['content'] is not mapping -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] != 'text' or part['text'] is not string -%}
                {{- raise_exception('Content not supported: expected parts {"type": "text", "text": ...}') -}}
            {%- endif -%}
            {%- set content.text = content.text + part['text'] -%}
        {%- endfor -%}
    {%- else -%}
        {{- raise_exception('Content not supported: expected text or a list of text parts') -}}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}
        {{- '<start_of_turn>user\\n' + content.text | trim + '<end_of_turn>\\n' -}}
    {%- else -%}
        {{- '<start_of_turn>model\\n' -}}
        {%- generation -%}{{- content.text | trim + '<end_of_turn>\\n' -}}{%- endgeneration -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<start_of_turn>model\\n' -}}
{%- endif -%}
"""

_GEMMA_DECODER = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
_EACH_BYTE = "recurrent_gemma.each_byte"


class RecurrentGemmaTokenizer(GemmaTokenizer):
    """Tokenizer of RecurrentGemma: BPE with byte fallback, spaces as U+2581, padding on the left.

    It differs from ``GemmaTokenizer`` in what that leaves to chance: a ``tokenizer.json`` is taken as it is rather than
    rebuilt from its vocabulary; a text that already starts with ``<bos>`` (a rendered chat, say) gets no second one;
    ``add_bos_token`` and ``add_eos_token`` say what the loaded file does; bytes that are no UTF-8 are decoded as
    SentencePiece does, each to U+FFFD, and the characters beside them stay; the chat template is there.
    Where a leading ``<bos>`` is dropped, ``char_to_token`` and its kin count characters from behind it.

    Args:
        vocab: Ids of the pieces; needs the special tokens. Not with ``tokenizer_file`` or ``tokenizer_object``.
        merges: Pairs of pieces, in order of rank.
        chat_template: Jinja template, or several by name. Default: the one of the instruction-tuned checkpoints.
        **kwargs: As for ``GemmaTokenizer``. ``add_bos_token`` defaults to what the file does, without a file to true.
    """

    def __init__(
        self,
        vocab: str | dict[str, int] | None = None,
        merges: Any = None,
        *,
        chat_template: str | dict[str, str] | None = CHAT_TEMPLATE,
        **kwargs: Any,
    ) -> None:
        tokenizer_file = kwargs.pop("tokenizer_file", None)
        if tokenizer_file is not None:
            kwargs["tokenizer_object"] = Tokenizer.from_file(str(tokenizer_file))
        backend = kwargs.get("tokenizer_object")
        if backend is None or backend.post_processor is None:
            kwargs.setdefault("add_bos_token", True)
        super().__init__(vocab, merges, chat_template=chat_template, **kwargs)
        # Transformers leaves these false when the file brings its own template: a later change of one would drop the
        # other token.
        added_ids = self.backend_tokenizer.encode("").ids
        self._add_bos_token = self.bos_token_id in added_ids
        self._add_eos_token = self.eos_token_id in added_ids
        ids = (self.backend_tokenizer.token_to_id(piece) for piece in BYTE_PIECES)
        self._byte_of_id = {i: byte for byte, i in enumerate(ids) if i is not None}

    @classmethod
    def convert_to_native_format(cls, trust_remote_code: bool = False, **kwargs: Any) -> dict[str, Any]:
        # Transformers rebuilds the backend of a class with its own `__init__` from vocabulary and merges, and so
        # silently replaces whatever else the file says.
        if kwargs.get("tokenizer_file") is not None:
            return kwargs
        return super().convert_to_native_format(trust_remote_code=trust_remote_code, **kwargs)

    def _save_pretrained(
        self, save_directory: str | os.PathLike, file_names: tuple[str, ...], *args: Any, **kwargs: Any
    ) -> tuple[str, ...]:
        files = super()._save_pretrained(save_directory, file_names, *args, **kwargs)
        shim = (str(write_shim(save_directory)),) if names_shim(self.init_kwargs.get("auto_map")) else ()
        return (*files, *shim)

    def _encode_plus(self, text: Any, text_pair: Any = None, *args: Any, **kwargs: Any) -> BatchEncoding:
        split_special_tokens = kwargs.get("split_special_tokens")
        split_special_tokens = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        if kwargs.get("add_special_tokens", True) and self.add_bos_token and not split_special_tokens:
            given = text, text_pair
            text, text_pair = (self._without_bos(item, kwargs.get("is_split_into_words", False)) for item in given)
            if kwargs.get("return_offsets_mapping", False) and (text, text_pair) != given:
                raise ValueError(
                    f"return_offsets_mapping: expected texts without a leading {self.bos_token!r}, got one that "
                    "has it. Remove it from the text (the tokenizer adds it), or pass add_special_tokens=False."
                )
        try:
            return super()._encode_plus(text, text_pair, *args, **kwargs)
        except TypeError as error:
            found = _surrogate(text) or _surrogate(text_pair)
            if found is None:
                raise
            where, position = found
            raise ValueError(
                f"text: expected Unicode text, got the lone surrogate {where[position]!r} at character {position} of "
                f"{where[max(position - 10, 0) : position + 10]!r}, which no encoding of text can express. Remove it, "
                "or read the text with errors='replace'."
            ) from error

    def _decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        ids = token_ids["input_ids"] if isinstance(token_ids, dict) else token_ids
        ids = [ids] if isinstance(ids, int) else ids
        if self._byte_of_id.keys().isdisjoint(ids) or not _decodes_as_gemma(self.backend_tokenizer.decoder):
            return super()._decode(ids, skip_special_tokens, clean_up_tokenization_spaces, **kwargs)
        # `tokenizers` gives U+FFFD for every byte of a run in which anything is invalid.
        return "".join(
            _decode_bytes(self._byte_of_id[i] for i in run)
            if are_bytes
            else super(RecurrentGemmaTokenizer, self)._decode(
                list(run), skip_special_tokens, clean_up_tokenization_spaces, **kwargs
            )
            for are_bytes, run in groupby(ids, key=self._byte_of_id.__contains__)
        )

    def _without_bos(self, text: Any, is_split_into_words: bool) -> Any:
        """``text`` (a text, words of a text, a pair, or a batch of these) without the BOS that texts start with."""
        if isinstance(text, str):
            return text.removeprefix(str(self.bos_token))
        if not isinstance(text, (list, tuple)):
            return text
        if is_split_into_words and text and isinstance(text[0], str):
            return type(text)((self._without_bos(text[0], False), *text[1:]))
        return type(text)(self._without_bos(item, is_split_into_words) for item in text)


def _surrogate(text: Any) -> tuple[str, int] | None:
    """The first text (of a text, words, pairs or a batch of these) with a lone surrogate, and where in it."""
    if isinstance(text, str):
        position = next((i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff"), None)
        return None if position is None else (text, position)
    if isinstance(text, (list, tuple)):
        return next(filter(None, map(_surrogate, text)), None)
    return None


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    # Python's own "replace" gives one U+FFFD for a character that is cut off, however many bytes there are of it.
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(_EACH_BYTE, _replace_each_byte)


def _decode_bytes(values: Iterable[int]) -> str:
    """The characters that the bytes encode in UTF-8, with U+FFFD for every byte that is no part of one.

    Source: ``ProcessBytePieces`` in SentencePiece's ``sentencepiece_processor.cc``.
    """
    return bytes(values).decode(errors=_EACH_BYTE)


def _decodes_as_gemma(decoder: Any) -> bool:
    """Whether ``decoder``, of a ``tokenizers.Tokenizer``, treats each token by itself, but for runs of bytes."""
    return decoder is not None and json.loads(decoder.__getstate__()) == json.loads(_GEMMA_DECODER.__getstate__())


__all__ = ["BYTE_PIECES", "CHAT_TEMPLATE", "TURN_MARKERS", "RecurrentGemmaTokenizer"]
