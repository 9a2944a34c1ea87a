"""``RecurrentGemmaCache``: everything a sequence remembers, of constant size, passed in and handed back."""

import copy
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling.cache import file
from recurrent_gemma.modeling.cache.recording import Recording
from recurrent_gemma.modeling.cache.storage import StateStorage
from recurrent_gemma.modeling.cache.trail import ColumnTrail, LayerTrail


class RecurrentGemmaCache(StateStorage):
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
        super().__init__(config, static)
        self.config_fields = file.config_fields(config)
        self._recording = Recording()
        self._is_user_defined = False  # for generate(): whether the cache outlives the call
        if batch_size is not None:
            self.early_initialization(batch_size, dtype=dtype or torch.float32, device=device or "cpu")

    @property
    def record_limit(self) -> int:
        """Columns of a prompt that ``crop`` can take back while the past is recorded."""
        return self._recording.limit

    @record_limit.setter
    def record_limit(self, columns: int) -> None:
        self._recording.limit = columns

    @property
    def is_croppable(self) -> bool:
        """Whether columns can be taken back."""
        return not self.static

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
