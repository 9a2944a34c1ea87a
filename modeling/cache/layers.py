"""The cache's layers: one state each, under the names that Transformers' tools look for."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

from recurrent_gemma.modeling.cache.progress import Progress
from recurrent_gemma.modeling.cache.states import AttentionState, LayerState, RecurrentState, RingState


class _StateLayer:
    """What both layer types share: the state, and operations on the batch."""

    is_sliding = True
    supports_early_init = False
    state: LayerState | None

    def __init__(self, progress: Progress, window: int | None, static: bool) -> None:
        super().__init__()
        self.progress, self.window, self.static = progress, window, static
        self.record_past = False
        self.put(None)

    @property
    def is_compileable(self) -> bool:
        """Whether address and shape of the state stay."""
        return self.static

    @property
    def is_croppable(self) -> bool:
        """Whether columns of the past can be taken back."""
        return not self.static

    def load(self) -> LayerState | None:
        """The state, None before the first tokens."""
        return self.state

    def store(self, state: LayerState | None) -> None:
        """Replace the state; the static form copies it into its buffers."""
        if self.static and isinstance(state, AttentionState):
            assert self.window is not None
            state = state.to_ring(self.window)
        if self.static and self.state is not None and state is not None:
            for buffer, new in zip(self.state, state, strict=True):
                if new is not buffer:
                    buffer.copy_(new)
        else:
            self.put(state)

    def put(self, state: LayerState | None) -> None:
        """Replace the state's own tensors."""
        raise NotImplementedError

    def map(self, function: Callable[[Tensor], Tensor]) -> None:
        """Apply ``function`` to every tensor of the state; static buffers keep their place where they fit."""
        if self.state is not None:
            new = type(self.state)(*map(function, self.state))
            fits = all(a.shape == b.shape and a.device == b.device for a, b in zip(new, self.state, strict=True))
            (self.store if fits else self.put)(new)

    def reset(self) -> None:
        """Forget everything; the static form keeps its buffers."""
        if self.static:
            self.map(torch.zeros_like)
        else:
            self.store(None)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row ``beam_idx[i]`` was."""
        self.map(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows ``indices``, in that order."""
        self.map(lambda t: t[indices.to(t.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row ``repeats`` times."""
        self.map(lambda t: t.repeat_interleave(repeats, dim=0))

    def crop(self, tokens_to_remove: int) -> None:
        """Not possible for one layer alone: raises TypeError."""
        raise TypeError("RecurrentGemmaCache layers are cropped together: call crop() of the cache.")

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> Any:
        """Not used, since the state is stored as a whole: raises TypeError."""
        raise TypeError("RecurrentGemmaCache layers are filled by RecurrentGemmaModel only.")

    update = update_conv_state = update_recurrent_state = lazy_initialization

    def get_seq_length(self) -> int:
        """Columns seen, pads included."""
        return int(self.progress.columns)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the 2-D mask: all columns."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """-1: there is no maximum length."""
        return -1


class RecurrentLayer(_StateLayer, LinearAttentionCacheLayerMixin):
    """State of one recurrent block."""

    def allocate(self, sizes: dict[str, Any], batch: int, dtype: torch.dtype, device: torch.device | str) -> None:
        """Make the static form's buffers; ``sizes`` are the entries of a cache's signature."""
        conv = torch.zeros(batch, sizes["conv1d_width"] - 1, sizes["lru_width"], dtype=dtype, device=device)
        state_dtype = torch.promote_types(dtype, torch.float32)
        self.put(RecurrentState(conv, torch.zeros(batch, sizes["lru_width"], dtype=state_dtype, device=device)))

    def put(self, state: LayerState | None) -> None:
        assert state is None or isinstance(state, RecurrentState)
        self.state = state
        conv, rg_lru = (None, None) if state is None else state
        self.conv_states, self.recurrent_states = {0: conv}, {0: rg_lru}
        self.has_previous_state = {0: state is not None}
        self.is_conv_states_initialized = self.is_recurrent_states_initialized = {0: state is not None}
        if conv is not None:
            self.dtype, self.device = conv.dtype, conv.device  # type: ignore[assignment]


class LocalAttentionLayer(_StateLayer, CacheLayerMixin):  # type: ignore[override]
    """State of one local attention block."""

    def allocate(self, sizes: dict[str, Any], batch: int, dtype: torch.dtype, device: torch.device | str) -> None:
        """Make the static form's buffers; ``sizes`` are the entries of a cache's signature."""
        shape = (batch, sizes["num_key_value_heads"], sizes["attention_window_size"] + 1, sizes["head_dim"])
        key, value = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        self.put(RingState(key, value, torch.zeros(batch, dtype=torch.long, device=device)))

    def put(self, state: LayerState | None) -> None:
        assert state is None or isinstance(state, (AttentionState, RingState))
        self.state = state
        self.keys, self.values = (None, None) if state is None else (state.key, state.value)
        self.is_initialized = state is not None
        if self.keys is not None:
            self.dtype, self.device = self.keys.dtype, self.keys.device
