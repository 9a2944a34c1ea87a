"""A small random checkpoint directory with a tokenizer, as ``save_pretrained`` writes it."""

from pathlib import Path

import torch

from recurrent_gemma import RecurrentGemmaConfig, RecurrentGemmaForCausalLM, RecurrentGemmaTokenizer

_SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_CHARACTERS = ["▁", "\n", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:'!?-"]
_MERGES = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "a"), ("i", "n"), ("e", "r"), ("o", "n"), ("I", "n")]


def write_checkpoint(directory: Path, *, seed: int = 0) -> Path:
    """Save a model with random weights and a Gemma-like tokenizer that knows bytes, letters and a few merges.

    Weights are large, so that texts differ; those of bytes and special tokens small, so that letters are likely.
    Nothing ends a text before its last token.
    """
    pieces = [*_SPECIAL, *_BYTES, *_CHARACTERS, *("".join(pair) for pair in _MERGES)]
    tokenizer = RecurrentGemmaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=_MERGES)
    config = RecurrentGemmaConfig(
        num_hidden_layers=3,
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_key_value_heads=1,
        attention_window_size=8,
    )
    model = RecurrentGemmaForCausalLM(config)
    model.generation_config.eos_token_id = None
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
        model.get_input_embeddings().weight[: len(_SPECIAL) + len(_BYTES)] *= 0.1
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


__all__ = ["write_checkpoint"]
