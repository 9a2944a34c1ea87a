"""What a ``PrefixCache`` is given, checked: one plain sequence from its beginning, and a model and caches that fit."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling.cache import AttentionState, RecurrentGemmaCache, StateSignature, state_signature

# Arguments of forward() and what is wrong with each.
_REFUSED = {
    "position_ids": "positions count from 0, and packed documents have no common prefix",
    "cu_seq_lens_q": "packed documents have no common prefix; pass every document by itself",
    "cu_seq_lens_k": "packed documents have no common prefix; pass every document by itself",
    "seq_idx": "packed documents have no common prefix; pass every document by itself",
    "inputs_embeds": "prefixes are found by their ids; pass ids",
    "past_key_values": "the cache comes from the stored prefix",
    "cache": "the cache comes from the stored prefix",
}


def as_tokens(ids: Tensor | Sequence[int], vocab_size: int) -> Tensor:
    """``ids`` as an (L,) int32 tensor on the CPU.

    Raises:
        TypeError, ValueError: They are no (L,) or (1, L) ids within the vocabulary, or there are none.
    """
    if not isinstance(ids, Tensor):
        if not isinstance(ids, Sequence) or not all(type(token) is int for token in ids):
            raise TypeError(f"ids: expected an int64 or int32 tensor or a list of int, got {_kind(ids)}.")
        ids = torch.tensor(ids, dtype=torch.int64)
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"ids: expected an int64 or int32 tensor or a list of int, got {ids.dtype}.")
    if ids.ndim == 2 and ids.shape[0] != 1:
        raise ValueError(f"ids: expected one row, shape (L,) or (1, L), got {tuple(ids.shape)}; pass row by row.")
    if ids.ndim not in (1, 2) or ids.numel() == 0:
        raise ValueError(f"ids: expected at least one token, shape (L,) or (1, L), got {tuple(ids.shape)}.")
    ids = ids.detach().cpu().reshape(-1)
    outside = (ids < 0) | (ids >= vocab_size)
    if bool(outside.any()):
        raise ValueError(
            f"ids: expected ids from 0 to {vocab_size - 1} (vocab_size - 1), got {int(ids[outside][0])}; use this "
            "model's own tokenizer."
        )
    return ids.to(torch.int32).contiguous()


def expect_no_pads(attention_mask: Tensor | None, length: int) -> None:
    """Raise TypeError or ValueError unless the mask is None or (1, L) or (L,) of ones."""
    if attention_mask is None:
        return
    if not isinstance(attention_mask, Tensor):
        raise TypeError(f"attention_mask: expected None or a tensor of ones, got {_kind(attention_mask)}.")
    if tuple(attention_mask.shape) not in ((1, length), (length,)):
        raise ValueError(
            f"attention_mask: expected the shape of ids (1, {length}), got {tuple(attention_mask.shape)}; leave it out."
        )
    if not bool((attention_mask == 1).all()):
        raise ValueError("attention_mask: expected ones, got a mask with pads; pass the ids without their pads.")


def refuse(arguments: Mapping[str, Any]) -> None:
    """Raise for arguments of a forward pass that a stored prefix has no place for, ValueError, and unknown ones."""
    for name, value in arguments.items():
        if name not in _REFUSED:
            raise TypeError(f"{name}: expected arguments that PrefixCache knows, got this one as well.")
        if value is not None:
            raise ValueError(f"{name}: expected None, got {_kind(value)}: {_REFUSED[name]}.")


def expect_one_sequence(options: Mapping[str, Any]) -> None:
    """Raise ValueError for options of ``generate`` that need another cache than that of one plain sequence."""
    refuse({name: options[name] for name in _REFUSED if name in options})
    for name in ("num_beams", "num_return_sequences"):
        if (options.get(name) or 1) != 1:
            raise ValueError(
                f"{name}: expected 1, got {options[name]}; prefill all but the last token, call "
                "cache.batch_repeat_interleave and pass the cache to model.generate."
            )
    if options.get("use_cache") is False:
        raise ValueError("use_cache: expected None or True, got False; call model.generate to go without a cache.")


def expect_model(model: Any, signature: StateSignature) -> None:
    """Raise TypeError or ValueError unless ``model`` makes states of ``signature``, the same for the same ids."""
    config = getattr(model, "config", None)
    if not isinstance(config, RecurrentGemmaConfig):
        raise TypeError(f"model: expected a RecurrentGemma model, got {type(model).__name__}.")
    _expect_signature("model", "model", state_signature(config), signature)
    if model.training and config.attention_dropout > 0:
        raise ValueError(
            f"model: expected one without dropout, got attention_dropout = {config.attention_dropout} in training "
            "mode; call model.eval()."
        )


def states_dtype(model: Any) -> torch.dtype:
    """The dtype in which ``model``, called here, keeps histories of convolutions, keys and values."""
    device = model.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype


def expect_cache(cache: Any, signature: StateSignature, length: int) -> None:
    """Raise TypeError or ValueError unless ``cache`` has read one plain row of ``length`` tokens, and no more."""
    if not isinstance(cache, RecurrentGemmaCache):
        raise TypeError(f"cache: expected a RecurrentGemmaCache, got {type(cache).__name__}.")
    _expect_signature("cache", "cache", cache.signature, signature)
    if cache.static:
        raise ValueError("cache: expected the default form, got the static one; make it without static=True.")
    if cache.next_position is None:
        raise ValueError("cache: expected one that has read ids, got an empty one; prefill reads and stores.")
    if cache.batch_size != 1:
        raise ValueError(
            f"cache: expected one row, got {cache.batch_size}; take rows from a clone with batch_select_indices."
        )
    if cache.columns != length:
        raise ValueError(
            f"ids, cache: expected as many ids as the cache has read ({cache.columns}), got {length}; generate() "
            "leaves its last token unread: pass sequences[:, :cache.columns]."
        )
    position = int(cache.next_position)
    if position != length:
        raise ValueError(
            f"cache: expected one document without pads, whose next position is {length}, got {position}; read the "
            "tokens by themselves."
        )
    kept = min(length, int(dict(signature)["attention_window_size"]))  # type: ignore[call-overload]
    for layer in cache.layers:
        state = layer.load()
        if isinstance(state, AttentionState) and state.key.shape[2] != kept:
            raise ValueError(f"cache: expected its last {kept} keys in every layer, got {state.key.shape[2]}.")


def expect_positive(name: str, value: Any) -> None:
    """Raise TypeError or ValueError unless ``value`` is an int of at least 1."""
    if type(value) is not int:
        raise TypeError(f"{name}: expected an int, got {_kind(value)}.")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}.")


def _expect_signature(field: str, noun: str, actual: StateSignature, expected: StateSignature) -> None:
    for (name, ours), (_, theirs) in zip(expected, actual, strict=True):
        if ours != theirs:
            raise ValueError(
                f"{field}: expected a {noun} with the state of this PrefixCache ({name} = {ours}), got another one "
                f"({name} = {theirs}); make a PrefixCache for every model."
            )


def _kind(value: Any) -> str:
    return f"a list with {value}" if isinstance(value, list) and len(value) < 9 else type(value).__name__
