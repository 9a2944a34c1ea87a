"""A sequence classifier of seven words, as small as can be, in a directory."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

WORDS = "[PAD] [UNK] a good bad word not".split()
LABELS = {0: "neutral", 1: "toxic"}


def save_classifier(directory: Path, model_class: Any = BertForSequenceClassification, **changes: Any) -> Path:
    """Write model and tokenizer, drawn at random, and return ``directory``."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16, **{"id2label": LABELS, "label2id": {v: k for k, v in LABELS.items()}, **changes},
    )  # fmt: skip
    model = model_class(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(directory)
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    ).save_pretrained(directory)
    return directory
