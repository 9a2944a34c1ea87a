"""A small random checkpoint directory with a tokenizer, as ``save_pretrained`` writes it."""

from pathlib import Path

import torch

from recurrent_gemma import RecurrentGemmaConfig, RecurrentGemmaForCausalLM, RecurrentGemmaTokenizer

_SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_CHARACTERS = ["▁", "\n", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:'!?-"]
_MERGES = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "a"), ("i", "n"), ("e", "r"), ("o", "n"), ("I", "n")]


_TURNS = ["<start_of_turn>", "<end_of_turn>"]


def write_checkpoint(directory: Path, *, seed: int = 0, chat: bool = False) -> Path:
    """Save a model with random weights and a Gemma-like tokenizer that knows bytes, letters and a few merges.

    Weights are large, so that texts differ; those of bytes and special tokens small, so that letters are likely.
    Nothing ends a text before its last token.

    With ``chat``, the tokenizer has the chat template's tokens, and the model writes nothing but visible characters and
    the end of its turn: its answers are what their text is tokenized to, and what the template makes of them. It
    remembers far more than a turn.
    """
    merges = [] if chat else _MERGES
    pieces = [*_SPECIAL, *_BYTES, *_CHARACTERS, *("".join(pair) for pair in merges), *(_TURNS if chat else [])]
    tokenizer = RecurrentGemmaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges)
    if chat:
        tokenizer.add_special_tokens({"extra_special_tokens": _TURNS})
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
    if chat:
        invisible = [*_SPECIAL, *_BYTES, "▁", "\n", "<start_of_turn>", "<mask>"]
        model.generation_config.suppress_tokens = tokenizer.convert_tokens_to_ids(invisible)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
        if chat:
            for name, parameter in model.named_parameters():
                if name.endswith("recurrent_param"):
                    parameter.sub_(5.0)
        model.get_input_embeddings().weight[: len(_SPECIAL) + len(_BYTES)] *= 0.1
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


__all__ = ["write_checkpoint"]
