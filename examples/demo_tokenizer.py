"""The tokenizer of the demo checkpoint: Gemma's pipeline and special ids with a small vocabulary of its own."""

import json
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from recurrent_gemma.tokenization import RecurrentGemmaTokenizer

TURN_TOKENS = ["<start_of_turn>", "<end_of_turn>"]
SPECIAL_TOKENS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<unused{i}>" for i in range(4)), *TURN_TOKENS]
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]

# What a piece may span: a word, a digit, a run of punctuation or line breaks, a space. A space goes with what follows
# it, except with digits.
PIECES = Regex(r"▁?\p{L}+|\d|\n+|▁?[^\p{L}\d\n▁]+|▁")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> RecurrentGemmaTokenizer:
    """Byte-pair encoding learned from ``texts``.

    Args:
        texts: Training texts.
        vocab_size: Entries in all: special tokens, 256 bytes, characters of the texts, and merges.

    Raises:
        ValueError: ``vocab_size`` leaves no room for the characters of ``texts``.
    """
    fixed = SPECIAL_TOKENS + BYTE_TOKENS
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split(PIECES, behavior="isolated")
    trainer = trainers.BpeTrainer(vocab_size=max(vocab_size - len(fixed), 0), min_frequency=2, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]
    pieces = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    if len(fixed) + len(pieces) > vocab_size:
        raise ValueError(
            f"vocab_size: expected at least {len(fixed) + len(pieces)} (special tokens, bytes and the characters of "
            f"the texts), got {vocab_size}."
        )
    # No piece crosses what the pattern above separates, so the merges give the same pieces without it: the published
    # tokenizers split nowhere, and this one runs the same pipeline.
    return RecurrentGemmaTokenizer(
        vocab={piece: i for i, piece in enumerate(fixed + pieces)},
        merges=[tuple(merge) for merge in learned["merges"]],
        extra_special_tokens=TURN_TOKENS,
    )
