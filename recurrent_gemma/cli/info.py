"""``recurrent-gemma info``: what a model is made of, and what it keeps in memory for each sequence."""

from collections import Counter
from pathlib import Path

import torch
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from recurrent_gemma.cli.checkpoint import block_types_of, open_checkpoint
from recurrent_gemma.configuration import PRESETS, RecurrentGemmaConfig
from recurrent_gemma.configuration.state_size import kv_cache_bytes, state_bytes
from recurrent_gemma.modeling import RecurrentGemmaForCausalLM

_LENGTHS = (2048, 8192, 32768, 131072)
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def info(model: str, *, dtype: torch.dtype | None = None) -> None:
    """Print tables about a checkpoint directory or a preset.

    Args:
        model: A directory, or one of ``recurrent_gemma.PRESETS``.
        dtype: Dtype to count the state in; ``None`` means that of the weights (presets: bfloat16, as published).

    Raises:
        CommandError: The directory is missing, of another architecture, or broken.
    """
    if model in PRESETS and not Path(model).exists():
        config = RecurrentGemmaConfig.from_preset(model)
        parameters, weights = count_parameters(config), None
        dtype = dtype or torch.bfloat16
    else:
        checkpoint = open_checkpoint(Path(model))
        config, parameters = checkpoint.config, checkpoint.parameters
        weights = f"{', '.join(checkpoint.dtypes)}, {decimal(checkpoint.weight_bytes)}"
        dtype = dtype or _stored_dtype(checkpoint.dtypes)
    console = Console()
    console.print(_architecture(model, config, parameters, weights))
    console.print(_memory(config, dtype))
    console.print("KV cache: a Gemma-like model of as many layers and heads, all with full attention.")


def count_parameters(config: RecurrentGemmaConfig) -> int:
    """Number of values in a model's weights, tied ones counted once; allocates none of them."""
    with torch.device("meta"):
        return RecurrentGemmaForCausalLM(config).num_parameters()


def _stored_dtype(names: tuple[str, ...]) -> torch.dtype:
    # Transformers' "auto" loads a checkpoint of mixed dtypes in that of its config or first tensor; here the widest.
    return max((_DTYPES.get(name, torch.float32) for name in names), key=lambda dtype: dtype.itemsize)


def _architecture(model: str, config: RecurrentGemmaConfig, parameters: int, weights: str | None) -> Table:
    table = Table(title=Text(model), title_justify="left", show_header=False)
    layers = Counter(block_types_of(config.layers_block_type))
    counts = ", ".join(f"{count} {name}" for name, count in layers.items())
    cap = config.final_logit_softcapping
    rows = {
        "architecture": ", ".join(config.architectures or [RecurrentGemmaForCausalLM.__name__]),
        "layers": f"{config.num_hidden_layers}: {counts}; pattern {', '.join(config.block_types or ())}",
        "width": f"{config.hidden_size}; recurrence {config.lru_width}, MLP {config.mlp_width}",
        "attention": f"{config.num_attention_heads} heads of {config.head_dim}, {config.num_key_value_heads} key/value",
        "window": f"{config.attention_window_size:,} positions before each token",
        "vocabulary": f"{config.vocab_size:,}; logits soft-capped at {cap:g}" if cap else f"{config.vocab_size:,}",
        "parameters": f"{parameters:,}",
    }
    if "attention" not in layers:
        del rows["attention"], rows["window"]
    if weights is not None:
        rows["weights"] = weights
    for name, value in rows.items():
        table.add_row(name, Text(value))
    return table


def _memory(config: RecurrentGemmaConfig, dtype: torch.dtype) -> Table:
    name = str(dtype).removeprefix("torch.")
    table = Table(title=f"Memory of one sequence, {name}", title_justify="left")
    for column in ("tokens", "recurrent", "conv", "window", "state", "KV cache", "ratio"):
        table.add_column(column, justify="right")
    for length in _LENGTHS:
        state = state_bytes(config, length=length, dtype=dtype)
        cache = kv_cache_bytes(config, length, dtype=dtype)
        sizes = (state.recurrent, state.conv, state.window, state.total, cache)
        table.add_row(f"{length:,}", *(decimal(size) for size in sizes), f"{cache / state.total:.1f}x")
    return table


__all__ = ["count_parameters", "info"]
