"""``RecurrentGemmaCache``: everything a sequence remembers, of constant size, passed in and handed back."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionCacheLayerMixin

from recurrent_gemma.configuration import RecurrentGemmaConfig


class RecurrentState(NamedTuple):
    """State of a recurrent block."""

    conv: Tensor  # (B, K - 1, R) last valid inputs of the convolution, the newest last
    rg_lru: Tensor  # (B, R) fp32


class AttentionState(NamedTuple):
    """State of a local attention block: each row's last valid keys and values, the newest last."""

    key: Tensor  # (B, G, min(W, tokens), D), RoPE applied
    value: Tensor  # (B, G, min(W, tokens), D)


LayerState = RecurrentState | AttentionState
StateSignature = tuple[tuple[str, object], ...]


class _RollingLayer:
    """What both layer types share: a state that is replaced as a whole, and batch operations on it."""

    is_compileable = False
    is_croppable = False
    is_sliding = True
    supports_early_init = False
    state: LayerState | None

    def load(self) -> LayerState | None:
        """The state, None before the first tokens."""
        return self.state

    def store(self, state: LayerState | None) -> None:
        """Replace the state."""
        self.state = state

    def _map(self, function: Callable[[Tensor], Tensor]) -> None:
        if self.state is not None:
            self.store(self.state._replace(**{k: function(v) for k, v in self.state._asdict().items()}))

    def reset(self) -> None:
        """Forget everything."""
        self.store(None)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row ``beam_idx[i]`` was."""
        self._map(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows ``indices``, in that order."""
        self._map(lambda t: t[indices.to(t.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row ``repeats`` times."""
        self._map(lambda t: t.repeat_interleave(repeats, dim=0))

    def crop(self, tokens_to_remove: int) -> None:
        """Not supported: raises NotImplementedError."""
        raise NotImplementedError(
            "RecurrentGemmaCache.crop: taking tokens back is not supported, since a recurrent state cannot be run "
            "backwards; clone() the cache before the tokens that may have to go."
        )

    def activate_past_recording(self) -> None:
        """Not supported: raises NotImplementedError."""
        raise NotImplementedError(
            "RecurrentGemmaCache.activate_past_recording: rollback, and with it assisted generation, is not supported; "
            "generate without assistant_model and prompt_lookup_num_tokens."
        )

    def get_max_length(self) -> int:
        """-1: there is no maximum length."""
        return -1


class RecurrentLayer(_RollingLayer, LinearAttentionCacheLayerMixin):
    """State of one recurrent block, under the names that Transformers' tools look for."""

    is_croppable = False

    def __init__(self) -> None:
        super().__init__()
        self.store(None)

    def store(self, state: LayerState | None) -> None:
        self.state = state
        conv, rg_lru = (None, None) if state is None else state
        self.conv_states, self.recurrent_states = {0: conv}, {0: rg_lru}
        self.has_previous_state = {0: state is not None}
        self.is_conv_states_initialized = self.is_recurrent_states_initialized = {0: state is not None}
        if conv is not None:
            self.dtype, self.device = conv.dtype, conv.device  # type: ignore[assignment]

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> Any:
        """Not used, since the state is stored as a whole: raises TypeError."""
        raise TypeError("RecurrentGemmaCache layers are filled by RecurrentGemmaModel only.")

    update_conv_state = update_recurrent_state = lazy_initialization


class LocalAttentionLayer(_RollingLayer, CacheLayerMixin):
    """State of one local attention block, under the names that Transformers' tools look for."""

    def __init__(self) -> None:
        super().__init__()
        self.columns = 0
        self.store(None)

    def store(self, state: LayerState | None) -> None:
        self.state = state
        self.keys, self.values = (None, None) if state is None else state
        self.is_initialized = state is not None
        if self.keys is not None:
            self.dtype, self.device = self.keys.dtype, self.keys.device

    def get_seq_length(self) -> int:
        """Columns seen, pads included."""
        return self.columns

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the 2-D mask: all columns."""
        return self.columns + query_length, 0

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> Any:
        """Not used, since the state is stored as a whole: raises TypeError."""
        raise TypeError("RecurrentGemmaCache layers are filled by RecurrentGemmaModel only.")

    update = lazy_initialization


class RecurrentGemmaCache(Cache):
    """State of a batch of sequences: RG-LRU state and convolution history, and a rolling window of keys and values.

    Its size does not grow beyond the attention window. ``forward(..., past_key_values=cache)`` extends it, and any
    split of a sequence into calls gives what one call gives. Rows are independent; several caches on one model do not
    interact.

    Args:
        config: The config of the model that will fill the cache.

    Raises:
        TypeError: ``config`` is of another family.
    """

    layers: list[RecurrentLayer | LocalAttentionLayer]  # type: ignore[assignment]

    def __init__(self, config: RecurrentGemmaConfig) -> None:
        if not isinstance(config, RecurrentGemmaConfig):
            raise TypeError(f"config: expected a RecurrentGemmaConfig, got {type(config).__name__}.")
        is_recurrent = [layer_type == "linear_attention" for layer_type in config.layers_block_type]
        super().__init__(
            layers=[RecurrentLayer() if recurrent else LocalAttentionLayer() for recurrent in is_recurrent]
        )
        self.signature = state_signature(config)
        self.columns = 0
        self.next_position: Tensor | None = None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns seen, pads included; the same for every layer."""
        return self.columns

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Length and offset of the 2-D mask that a forward pass over ``query_length`` new columns expects."""
        return self.columns + query_length, 0

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """Whether any column has been seen."""
        return self.columns > 0

    @property
    def batch_size(self) -> int:
        """Rows, or -1 before the first forward pass."""
        return -1 if self.next_position is None else self.next_position.shape[0]

    def expect_matches(self, signature: StateSignature, batch: int) -> None:
        """Raise ValueError unless a model of ``signature`` can extend this cache with ``batch`` rows."""
        for (name, ours), (_, models) in zip(self.signature, signature, strict=True):
            if ours != models:
                raise ValueError(
                    f"past_key_values: expected a cache of this model ({name} = {models}), got one of another model "
                    f"({name} = {ours}); make it with RecurrentGemmaCache(model.config)."
                )
        if self.batch_size not in (-1, batch):
            raise ValueError(
                f"past_key_values: expected a cache of as many rows as the inputs have ({batch}), got one of "
                f"{self.batch_size}; see batch_repeat_interleave and batch_select_indices."
            )

    def advance(self, columns: int, next_position: Tensor) -> None:
        """Note that a forward pass has stored its states after ``columns`` more columns."""
        self.columns += columns
        self.next_position = next_position
        self._tell_layers()

    def reset(self) -> None:
        """Forget everything; the cache can be used again, for any batch size."""
        super().reset()
        self.columns, self.next_position = 0, None
        self._tell_layers()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row ``beam_idx[i]`` was."""
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self._map_positions(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows ``indices``, in that order."""
        super().batch_select_indices(indices)
        self._map_positions(lambda t: t[indices.to(t.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row ``repeats`` times."""
        super().batch_repeat_interleave(repeats)
        self._map_positions(lambda t: t.repeat_interleave(repeats, dim=0))

    def clone(self) -> "RecurrentGemmaCache":
        """An independent copy; gradients flow through neither."""
        return copy.deepcopy(self)

    def detach(self) -> "RecurrentGemmaCache":
        """Cut the gradient through the states, in place; returns self."""
        for layer in self.layers:
            layer._map(Tensor.detach)
        return self

    def to(self, device: torch.device | str) -> "RecurrentGemmaCache":
        """Move every state to ``device``, in place; returns self."""
        for layer in self.layers:
            layer._map(lambda t: t.to(device))
        self._map_positions(lambda t: t.to(device))
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "RecurrentGemmaCache":
        # Tensors that carry a graph refuse to be deep-copied.
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        copied.layers = []
        for layer in self.layers:
            twin = type(layer)()
            twin.store(layer.load())
            twin._map(lambda t: t.detach().clone())
            copied.layers.append(twin)
        copied._map_positions(Tensor.clone)
        copied._tell_layers()
        return copied

    def _map_positions(self, function: Callable[[Tensor], Tensor]) -> None:
        if self.next_position is not None:
            self.next_position = function(self.next_position)

    def _tell_layers(self) -> None:
        for layer in self.layers:
            if isinstance(layer, LocalAttentionLayer):
                layer.columns = self.columns


def state_signature(config: RecurrentGemmaConfig) -> StateSignature:
    """The config fields that determine the shapes and the meaning of a state."""
    names = "layers_block_type lru_width conv1d_width num_key_value_heads head_dim attention_window_size".split()
    values = (getattr(config, name) for name in names)
    return tuple((name, tuple(v) if isinstance(v, list) else v) for name, v in zip(names, values, strict=True))
