"""Tokenizer of the RecurrentGemma checkpoints, and the chat template of the instruction-tuned ones."""

from recurrent_gemma.tokenization.from_sentencepiece import tokenizer_from_sentencepiece
from recurrent_gemma.tokenization.tokenizer import CHAT_TEMPLATE, RecurrentGemmaTokenizer

__all__ = ["CHAT_TEMPLATE", "RecurrentGemmaTokenizer", "tokenizer_from_sentencepiece"]
