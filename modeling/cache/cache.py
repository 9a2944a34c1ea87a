"""``RecurrentGemmaCache``: everything a sequence remembers, of constant size, passed in and handed back."""

import copy
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling.cache import file
from recurrent_gemma.modeling.cache.layers import LocalAttentionLayer, RecurrentLayer
from recurrent_gemma.modeling.cache.progress import Progress
from recurrent_gemma.modeling.cache.recording import Recording
from recurrent_gemma.modeling.cache.states import LayerState, RecurrentState, RingState
from recurrent_gemma.modeling.cache.trail import ColumnTrail, LayerTrail

StateSignature = tuple[tuple[str, object], ...]


class RecurrentGemmaCache(Cache):
    """State of a batch of sequences: RG-LRU state and convolution history, and a window of keys and values.

    Its size does not grow beyond the attention window. ``forward(..., past_key_values=cache)`` extends it, and any
    split of a sequence into calls gives what one call gives. Rows are independent; several caches on one model do not
    interact.

    It has two forms, which give the same results. The default grows to the window and rolls from there on, and can take
    tokens back (``activate_past_recording`` and ``crop``). The static form (``static=True``) keeps every state in a
    buffer of fixed address and shape, so that a compiled step is compiled once; it is for inference.

    Args:
        config: The config of the model that will fill the cache.
        static: Which form.
        batch_size: Rows to make the static form's buffers for, now; None: with the first tokens.
        dtype: The model's dtype, with ``batch_size``; None: fp32.
        device: Where the buffers live, with ``batch_size``.

    Raises:
        TypeError: ``config`` is of another family.
        ValueError: ``batch_size`` is given for the default form.
    """

    layers: list[RecurrentLayer | LocalAttentionLayer]  # type: ignore[assignment]

    def __init__(
        self,
        config: RecurrentGemmaConfig,
        *,
        static: bool = False,
        batch_size: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if not isinstance(config, RecurrentGemmaConfig):
            raise TypeError(f"config: expected a RecurrentGemmaConfig, got {type(config).__name__}.")
        self.signature = state_signature(config)
        self.config_fields = file.config_fields(config)
        self.static = static
        self._progress = Progress(static)
        self._recording = Recording()
        self._is_user_defined = False  # for generate(): whether the cache outlives the call
        super().__init__(layers=[self._make_layer(kind) for kind in config.layers_block_type])
        if batch_size is not None:
            self.early_initialization(batch_size, dtype=dtype or torch.float32, device=device or "cpu")

    @property
    def columns(self) -> int:
        """Columns seen, pads included."""
        return int(self._progress.columns)

    @property
    def next_position(self) -> Tensor | None:
        """(B,) int64 position of each row's next token; None before the first."""
        return self._progress.next_position

    @property
    def last_ids(self) -> Tensor | None:
        """(B, n) int64 ids of the last columns, at most 8; -1 where embeddings were read. None before the first."""
        return self._progress.last_ids

    @property
    def record_limit(self) -> int:
        """Columns of a prompt that ``crop`` can take back while the past is recorded."""
        return self._recording.limit

    @record_limit.setter
    def record_limit(self, columns: int) -> None:
        self._recording.limit = columns

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns seen, pads included; the same for every layer."""
        return self.columns

    @property
    def max_cache_len(self) -> int:
        """-1, no maximum. PEFT's prefix tuning asks before it passes a cache of its own, which ``forward`` refuses."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Length and offset of the 2-D mask that a forward pass over ``query_length`` new columns expects."""
        return self.columns + query_length, 0

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """Whether any column has been seen."""
        return self.columns > 0

    @property
    def is_linear(self) -> list[bool]:
        """Whether each layer is a recurrence, where others count columns.

        generate() takes a cache of nothing but recurrences for one that cannot tell how many columns it has seen. This
        one can, so it never says that of all its layers.
        """
        linear = [isinstance(layer, RecurrentLayer) for layer in self.layers]
        return linear if not all(linear) else [False] * len(linear)

    @property
    def is_croppable(self) -> bool:
        """Whether columns can be taken back."""
        return not self.static

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

    def early_initialization(
        self,
        batch_size: int,
        num_heads: int | list[int] | None = None,
        head_dim: int | list[int] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Make the static form's buffers for ``batch_size`` rows; heads and their width are the config's.

        Raises:
            ValueError: This is the default form, whose states come with the first tokens.
        """
        if not self.static:
            raise ValueError(
                "early_initialization: expected the static form, got the default one, which has no buffers; make the "
                "cache with static=True."
            )
        sizes = dict(self.signature)
        for layer in self.layers:
            layer.allocate(sizes, batch_size, dtype, device)
        self._progress.place(torch.zeros(batch_size, dtype=torch.long, device=device))
        self._fix_addresses()

    def buffers(self) -> dict[str, Tensor]:
        """The static form's own buffers by name: ``layers.0.conv``, ``layers.2.key``, ``next_position``, ..."""
        return self._named(layer.load() for layer in self.layers)

    def use_buffers(self, buffers: dict[str, Tensor]) -> None:
        """Let these tensors, named as in ``buffers()``, be the buffers of this static cache. Columns count from 0."""
        for index, layer in enumerate(self.layers):
            kind = RecurrentState if isinstance(layer, RecurrentLayer) else RingState
            layer.put(kind(*(buffers[f"layers.{index}.{name}"] for name in kind._fields)))
        self._progress.place(buffers["next_position"], buffers["last_ids"])
        self._fix_addresses()

    def columns_to_record(self, length: int) -> int:
        """How many of the last columns of a forward pass over ``length`` the layers' trails have to cover."""
        return self._recording.columns_to_record(length) if self.layers[0].record_past else 0

    def advance(
        self,
        columns: int,
        next_position: Tensor,
        ids: Tensor | None = None,
        trails: Sequence[LayerTrail] = (),
        column_trail: ColumnTrail | None = None,
    ) -> None:
        """Note that a forward pass has stored its states after ``columns`` more columns.

        Args:
            columns: Columns of the pass.
            next_position: (B,) int64.
            ids: (B, columns) int64; None where embeddings were read.
            trails: Each layer's trail of the last columns of the pass, if the past is recorded.
            column_trail: What they share.
        """
        if column_trail is not None:
            self._recording.extend(trails, column_trail)
        new = self.next_position is None
        self._progress.advance(columns, next_position, ids)
        if new:
            self._fix_addresses()

    def activate_past_recording(self) -> None:
        """Record what ``crop`` needs, from the next forward pass on: at least the last ``record_limit`` columns.

        Raises:
            NotImplementedError: The static form overwrites its past.
        """
        if self.static:
            raise NotImplementedError(
                "RecurrentGemmaCache.activate_past_recording: the static form overwrites its past, so tokens cannot be "
                "taken back; use the default form for assisted generation."
            )
        self._recording.prompt_read &= self.layers[0].record_past
        for layer in self.layers:
            layer.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last columns, in every row, and forget what was recorded.

        Args:
            tokens_to_remove: 0 or a negative number: how many columns to take back.

        Raises:
            ValueError: The number is positive, or more columns than were recorded since the last ``crop``.
        """
        tokens_to_remove = int(tokens_to_remove)  # generate() may pass a tensor
        if tokens_to_remove > 0:
            raise ValueError(
                f"tokens_to_remove: expected 0 or a negative number of columns to take back, got {tokens_to_remove}."
            )
        recorded = self._recording.length
        if -tokens_to_remove > recorded:
            raise ValueError(
                f"tokens_to_remove: expected at most the {recorded} columns recorded since the last crop, got "
                f"{-tokens_to_remove}; call activate_past_recording() before the tokens are read, and see record_limit."
            )
        if self.columns + tokens_to_remove == 0:
            self.reset()
        elif tokens_to_remove:
            self._step_back(recorded + tokens_to_remove)
        self._recording.forget()

    def reset(self) -> None:
        """Forget everything. The default form then takes any batch size; the static one keeps its buffers."""
        super().reset()
        self._recording.forget()
        self._recording.prompt_read = False
        self._progress.reset()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row ``beam_idx[i]`` was."""
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self._map_rest(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows ``indices``, in that order. The static form gets new buffers if their number changes."""
        super().batch_select_indices(indices)
        self._map_rest(lambda t: t[indices.to(t.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row ``repeats`` times. The static form gets new buffers."""
        super().batch_repeat_interleave(repeats)
        self._map_rest(lambda t: t.repeat_interleave(repeats, dim=0))

    def clone(self) -> "RecurrentGemmaCache":
        """An independent copy; gradients flow through neither."""
        return copy.deepcopy(self)

    def fork(self, copies: int) -> "RecurrentGemmaCache":
        """An independent cache in which every row stands ``copies`` times: one prompt, several continuations."""
        if copies < 1:
            raise ValueError(f"copies: expected at least 1, got {copies}.")
        forked = self.clone()
        forked.batch_repeat_interleave(copies)
        return forked

    def detach(self) -> "RecurrentGemmaCache":
        """Cut the gradient through the states, in place; returns self."""
        for layer in self.layers:
            layer.map(Tensor.detach)
        self._recording.map(Tensor.detach)
        return self

    def to(self, device: torch.device | str) -> "RecurrentGemmaCache":
        """Move every state to ``device``, in place; returns self."""
        for layer in self.layers:
            layer.map(lambda t: t.to(device))
        self._map_rest(lambda t: t.to(device))
        if isinstance(self._progress.columns, Tensor):
            self._progress.columns = self._progress.columns.to(device)
        self._fix_addresses()
        return self

    def tensors(self) -> dict[str, Tensor]:
        """The state by name, without copying: ``layers.0.conv``, ``layers.2.key``, ..., ``next_position``.

        Keys and values are columns, the newest last, in both forms. What is recorded for ``crop`` is not among them.
        Empty before the first tokens.
        """
        states = (layer.load() for layer in self.layers)
        return self._named(state.to_window() if isinstance(state, RingState) else state for state in states)

    @classmethod
    def from_tensors(
        cls, config: RecurrentGemmaConfig, tensors: dict[str, Tensor], columns: int, *, static: bool = False
    ) -> "RecurrentGemmaCache":
        """The cache whose ``tensors()`` and ``columns`` these are. The tensors are taken over, not copied.

        Raises:
            ValueError: A tensor is missing, unknown, or of a shape or dtype that the config's layers cannot have.
        """
        cache = cls(config, static=static)
        if columns:
            for layer, state in zip(cache.layers, file.states_from(config, tensors, columns), strict=True):
                layer.store(state)
            cache._progress.place(tensors["next_position"], tensors["last_ids"], columns)
            cache._fix_addresses()
        return cache

    def save(self, path: str | os.PathLike, token_ids: Tensor | None = None) -> None:
        """Write the state to one safetensors file, from which ``load`` goes on in another process.

        The file is complete or the one that was there before, whenever the process ends. What is recorded for ``crop``
        is not saved.

        Args:
            path: The file.
            token_ids: (B, columns or more) ids that the cache has seen, to be kept beside the state, and any that it
                has yet to read: what generate() samples last, it does not feed.

        Raises:
            TypeError, ValueError: token_ids has the wrong dtype or shape.
            OSError: The file cannot be written.
        """
        file.save(path, self.config_fields, self.tensors(), self.columns, token_ids)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        config: RecurrentGemmaConfig,
        *,
        device: torch.device | str = "cpu",
        static: bool = False,
    ) -> "RecurrentGemmaCache":
        """The state in the file ``path``.

        Args:
            path: What ``save`` wrote.
            config: The config of the model that goes on with it.
            device: Where the states shall live.
            static: Which form.

        Raises:
            SessionFileError: The file is none of this kind, of another version or config, truncated or altered.
            OSError: The file cannot be read.
        """
        tensors, columns = file.load(path, config, device)
        return cls.from_tensors(config, tensors, columns, static=static)

    def __deepcopy__(self, memo: dict[int, Any]) -> "RecurrentGemmaCache":
        # Tensors that carry a graph refuse to be deep-copied.
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        copied._progress, copied._recording = self._progress.clone(), self._recording.clone()
        copied.layers = []
        for layer in self.layers:
            twin = type(layer)(copied._progress, layer.window, layer.static)
            state = layer.load()
            twin.put(None if state is None else type(state)(*(t.detach().clone() for t in state)))
            twin.record_past = layer.record_past
            copied.layers.append(twin)
        copied._fix_addresses()
        return copied

    def _make_layer(self, kind: str) -> RecurrentLayer | LocalAttentionLayer:
        if kind == "linear_attention":
            return RecurrentLayer(self._progress, None, self.static)
        window = dict(self.signature)["attention_window_size"]
        assert isinstance(window, int)
        return LocalAttentionLayer(self._progress, window, self.static)

    def _named(self, states: Iterable[LayerState | None]) -> dict[str, Tensor]:
        if self.next_position is None or self.last_ids is None:
            return {}
        named = {"next_position": self.next_position, "last_ids": self.last_ids}
        for index, state in enumerate(states):
            if state is not None:
                named |= {f"layers.{index}.{name}": tensor for name, tensor in state._asdict().items()}
        return named

    def _fix_addresses(self) -> None:
        """Tell torch.compile that the static form's tensors stay where they are.

        A CUDA graph may only change tensors of which this is known: with one buffer that is not, there is none.
        """
        if self.static and not torch.compiler.is_compiling():
            states = (tensor for layer in self.layers for tensor in layer.load() or ())
            for buffer in (*states, *self._progress.tensors()):
                torch._dynamo.mark_static_address(buffer)

    def _map_rest(self, function: Callable[[Tensor], Tensor]) -> None:
        self._progress.map(function)
        self._recording.map(function)
        self._fix_addresses()

    def _step_back(self, count: int) -> None:
        """Take the states after the first ``count`` recorded columns."""
        columns = self._recording.columns
        assert columns is not None
        for layer, trail in zip(self.layers, self._recording.trails, strict=True):
            layer.store(trail.state_after(count, columns.starts, columns.valid))
        kept = self.columns - (columns.valid.shape[1] - count)
        self._progress.place(columns.position_after(count), columns.ids_after(count), kept)


def state_signature(config: RecurrentGemmaConfig) -> StateSignature:
    """The config fields that determine the shapes and the meaning of a state."""
    names = "layers_block_type lru_width conv1d_width num_key_value_heads head_dim attention_window_size".split()
    values = (getattr(config, name) for name in names)
    return tuple((name, tuple(v) if isinstance(v, list) else v) for name, v in zip(names, values, strict=True))
