"""Where the states of a batch lie: one layer each, in either form, with how far the batch has been read.

Beside it what Transformers' tools ask of a cache, most of which follows from that.
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.modeling.cache.layers import LocalAttentionLayer, RecurrentLayer
from recurrent_gemma.modeling.cache.progress import Progress
from recurrent_gemma.modeling.cache.states import LayerState, RecurrentState, RingState

StateSignature = tuple[tuple[str, object], ...]


def state_signature(config: RecurrentGemmaConfig) -> StateSignature:
    """The config fields that determine the shapes and the meaning of a state."""
    names = "layers_block_type lru_width conv1d_width num_key_value_heads head_dim attention_window_size".split()
    values = (getattr(config, name) for name in names)
    return tuple((name, tuple(v) if isinstance(v, list) else v) for name, v in zip(names, values, strict=True))


class StateStorage(Cache):
    """States of a batch of sequences, and how far they have been read.

    Args:
        config: The config of the model whose states these are.
        static: Whether every state has a buffer of fixed address and shape.
    """

    layers: list[RecurrentLayer | LocalAttentionLayer]  # type: ignore[assignment]

    def __init__(self, config: RecurrentGemmaConfig, static: bool) -> None:
        self.signature = state_signature(config)
        self.static = static
        self._progress = Progress(static)
        super().__init__(layers=[self._make_layer(kind) for kind in config.layers_block_type])

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
    def batch_size(self) -> int:
        """Rows, or -1 before the first forward pass."""
        return -1 if self.next_position is None else self.next_position.shape[0]

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

    def tensors(self) -> dict[str, Tensor]:
        """The state by name, without copying: ``layers.0.conv``, ``layers.2.key``, ..., ``next_position``.

        Keys and values are columns, the newest last, in both forms. What is recorded for ``crop`` is not among them.
        Empty before the first tokens.
        """
        states = (layer.load() for layer in self.layers)
        return self._named(state.to_window() if isinstance(state, RingState) else state for state in states)

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
