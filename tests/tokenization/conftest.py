"""Models trained once, and the tokenizers that they are converted to."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from recurrent_gemma.tokenization import RecurrentGemmaTokenizer, tokenizer_from_sentencepiece
from tests.support import require
from tests.tokenization.sentencepiece_models import SYMBOLS, proto, train


class Converted(NamedTuple):
    """SentencePiece's own processor of a model, and our tokenizer of it."""

    path: Path
    processor: Any
    tokenizer: RecurrentGemmaTokenizer

    @classmethod
    def of(cls, path: Path, **options: Any) -> "Converted":
        processor = require("sentencepiece").SentencePieceProcessor(model_file=str(path))
        return cls(path, processor, tokenizer_from_sentencepiece(path, **options))

    def pieces(self) -> list[str]:
        """What a text may be put together from: normal pieces and user-defined symbols."""
        return [piece.piece for piece in proto(self.path).pieces if piece.type in (1, 4)]

    def symbols(self) -> list[str]:
        return [piece.piece for piece in proto(self.path).pieces if piece.type == 4]

    def differences(self, texts: list[str]) -> list[str]:
        """The texts for which the two give other ids, each with both."""
        ours = self.tokenizer(texts, add_special_tokens=False).input_ids
        return [
            f"{text!r}: {self.processor.id_to_piece(ids)} and {self.processor.id_to_piece(given)}"
            for text, ids, given in zip(texts, self.processor.encode(texts), ours, strict=True)
            if ids != given
        ]


# Overlapping symbols: one begins, ends or holds another, or is a single character.
HARD_SYMBOLS = [
    "<mask>",
    *SYMBOLS[13:15],
    "▁a",
    "▁ab▁",
    "ab",
    "aba",
    "abab",
    "e▁",
    "▁▁the",
    "x<",
    "\n",
    "日",
    "é",
    "é\n",
]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """Hardly any pieces beside symbols and characters."""
    return Converted.of(train(tmp_path_factory.mktemp("model") / "tokenizer.model", vocab_size=800))


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """As many pieces as the text gives."""
    return Converted.of(train(tmp_path_factory.mktemp("model") / "tokenizer.model", vocab_size=1600))


@pytest.fixture(scope="session")
def hard(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    """User-defined symbols that overlap each other and the pieces; characters that are left to bytes."""
    path = tmp_path_factory.mktemp("model") / "tokenizer.model"
    return Converted.of(train(path, vocab_size=900, symbols=HARD_SYMBOLS, character_coverage=0.98))


@pytest.fixture(params=["small", "large", "hard"])
def trained(request: pytest.FixtureRequest) -> Converted:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def converted_directory(large: Converted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("converted")
    large.tokenizer.save_pretrained(directory)
    return directory
