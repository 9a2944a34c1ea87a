"""``PrefixCache``: prompts that begin alike are read once up to where they differ."""

import itertools
import threading
from collections.abc import Sequence
from operator import methodcaller
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recurrent_gemma.configuration import RecurrentGemmaConfig
from recurrent_gemma.configuration.state_size import state_bytes
from recurrent_gemma.modeling.cache import RecurrentGemmaCache, state_signature
from recurrent_gemma.modeling.layers import RecurrentGemmaDecoderLayer
from recurrent_gemma.modeling.model import RecurrentGemmaModel
from recurrent_gemma.modeling.prefix_cache.arguments import (
    as_tokens,
    expect_cache,
    expect_model,
    expect_no_pads,
    expect_one_sequence,
    expect_positive,
    refuse,
    states_dtype,
)
from recurrent_gemma.modeling.prefix_cache.disk import DiskStore
from recurrent_gemma.modeling.prefix_cache.eviction import POLICIES, choose_victim
from recurrent_gemma.modeling.prefix_cache.radix_tree import Node, RadixTree
from recurrent_gemma.modeling.prefix_cache.states import Snapshot, Window, join, put_together, take_apart
from recurrent_gemma.modeling.prefix_cache.statistics import PrefixCacheStatistics

TokenIds = Tensor | Sequence[int]


class PrefixCache:
    """States of prompts that one model has read, for prompts that begin with the same tokens.

    A radix tree over tokens. Keys and values are stored once a token, and only where a snapshot needs them; the
    recurrent states, which cannot be cut or run backwards, at the ends of prompts and where prompts turned out to part.
    Nothing is known of that place before two prompts have been seen, so the second reads up to it again; ``prefill`` a
    prefix that many prompts will share, such as a system prompt, to have it read once.

    Caches handed out are independent copies. All methods may be called from several threads at once; the model runs
    outside the lock. One ``PrefixCache`` belongs to one model: another config or dtype raises, other weights of the
    same config cannot be told, so call ``clear`` when they change.

    Args:
        config: The model's config.
        max_bytes: Bound of the tensors in memory, held whenever no call is in progress.
        directory: Where snapshots go that have to leave memory, and where they are found again, by later processes too.
        max_disk_bytes: Bound of the files there; goes with ``directory``.
        policy: What leaves first: ``"flops_per_byte"`` weighs the work a snapshot saves for its bytes and how long ago
            it was used, ``"lru"`` looks at the latter alone.
        min_tokens: A place where prompts part is stored only if that saves at least so many tokens.

    Raises:
        TypeError, ValueError: An argument is of another type, or has a value outside its range; a file in
            ``directory`` is of another model.
    """

    def __init__(
        self,
        config: RecurrentGemmaConfig,
        *,
        max_bytes: int,
        directory: str | PathLike[str] | None = None,
        max_disk_bytes: int | None = None,
        policy: str = "flops_per_byte",
        min_tokens: int = 16,
    ) -> None:
        if not isinstance(config, RecurrentGemmaConfig):
            raise TypeError(f"config: expected a RecurrentGemmaConfig, got {type(config).__name__}.")
        expect_positive("max_bytes", max_bytes)
        expect_positive("min_tokens", min_tokens)
        if policy not in POLICIES:
            raise ValueError(f"policy: expected one of {list(POLICIES)}, got {policy!r}.")
        smallest = state_bytes(config, length=1).total
        if max_bytes < smallest:
            raise ValueError(
                f"max_bytes: expected at least the {smallest} bytes of one snapshot after one token, got {max_bytes}; "
                f"a full window takes {state_bytes(config).total}."
            )
        if (directory is None) != (max_disk_bytes is None):
            raise ValueError(
                f"directory, max_disk_bytes: expected both or neither, got {directory!r} and {max_disk_bytes!r}."
            )
        self.config, self.max_bytes, self.policy, self.min_tokens = config, max_bytes, policy, min_tokens
        self._signature = state_signature(config)
        self._disk = None
        if directory is not None and max_disk_bytes is not None:
            expect_positive("max_disk_bytes", max_disk_bytes)
            self._disk = DiskStore(Path(directory), self._signature, max_disk_bytes)
        self._lock = threading.Lock()
        self._clock = itertools.count(1)
        self._forget()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in memory."""
        with self._lock:
            return self._tree.nbytes

    @property
    def statistics(self) -> PrefixCacheStatistics:
        """Counts since the start or the last ``clear``, and the present sizes."""
        disk_nbytes = 0 if self._disk is None else self._disk.nbytes
        with self._lock:
            return PrefixCacheStatistics(
                **self._counts,
                snapshots=len(self._tree.snapshots()),
                nbytes=self._tree.nbytes,
                disk_nbytes=disk_nbytes,
            )

    def match(self, ids: TokenIds) -> int:
        """How many tokens of ``ids`` a ``prefill`` of them would reuse. Counts as no lookup and no use.

        Args:
            ids: (L,) or (1, L) int64 or int32, or a list of int.

        Raises:
            TypeError, ValueError: As in ``prefill``.
        """
        tokens = as_tokens(ids, self.config.vocab_size)
        with self._lock:
            depth, dtype = self._tree.match(tokens)[0].depth, self._dtype
        if self._disk is None:
            return depth
        return max(depth, self._disk.find(tokens, dtype or _config_dtype(self.config)))

    def prefill(
        self, model: Any, ids: TokenIds, *, attention_mask: Tensor | None = None, **refused: Any
    ) -> RecurrentGemmaCache:
        """A cache that has read exactly ``ids``; the model reads only what is not stored, and that is stored then.

        ``generate`` and the logits of the last token need a token that is not in the cache yet, so pass all but the
        last one and then ``model.generate(ids, past_key_values=cache)`` or ``model(ids[:, -1:],
        past_key_values=cache)``. (Logits are not stored: with 256,000 pieces they would be twice a state.)

        Args:
            model: The language model or its backbone, whose config has this cache's state. No gradients are kept.
            ids: (L,) or (1, L) int64 or int32, or a list of int: one sequence from its beginning.
            attention_mask: None or (1, L) of ones.
            **refused: Arguments of ``forward`` that a stored prefix has no place for raise by name.

        Raises:
            TypeError: ``ids`` or ``model`` is of another type.
            ValueError: More than one row, no token, ids outside the vocabulary, pads, packed documents, or a model with
                another state.
        """
        refuse(refused)
        tokens = as_tokens(ids, self.config.vocab_size)
        expect_no_pads(attention_mask, len(tokens))
        expect_model(model, self._signature)
        cache, branch = self._start(model, tokens)
        for depth in sorted({branch, len(tokens)}):
            if depth > cache.columns:
                self._read(model, tokens[cache.columns : depth], cache)
                self._store(tokens[:depth], cache)
        return cache

    def generate(self, model: Any, ids: TokenIds, *, attention_mask: Tensor | None = None, **options: Any) -> Any:
        """``model.generate(ids, **options)``, which reads what is new only, and stores the answer's end as well.

        So the next turn of a conversation goes on where this one ended.

        Args:
            model: The language model.
            ids: (1, L) or (L,) int64 or int32, or a list of int.
            attention_mask: None or (1, L) of ones.
            **options: Those of ``generate``.

        Returns:
            What ``model.generate`` returns: (1, L + new) ids, or its output object.

        Raises:
            TypeError, ValueError: As in ``prefill``; ``options`` ask for several sequences, or no cache.
        """
        expect_one_sequence(options)
        tokens = as_tokens(ids, self.config.vocab_size)
        expect_no_pads(attention_mask, len(tokens))
        expect_model(model, self._signature)
        cache = self.prefill(model, tokens[:-1]) if len(tokens) > 1 else RecurrentGemmaCache(self.config)
        row = tokens[None].long().to(model.device)
        # Without a mask, generate() would take ids that equal the pad token's for pads.
        output = model.generate(row, attention_mask=torch.ones_like(row), past_key_values=cache, **options)
        sequences = output if isinstance(output, Tensor) else output.sequences
        if cache.columns:
            self.insert(sequences[0, : cache.columns], cache)
        return output

    def insert(self, ids: TokenIds, cache: RecurrentGemmaCache) -> None:
        """Store what ``cache`` remembers after reading exactly ``ids``, copied.

        Args:
            ids: (L,) or (1, L) int64 or int32, or a list of int. That the cache has read these is not checked, beyond
                their number.
            cache: One row without pads and packed documents.

        Raises:
            TypeError: ``ids`` or ``cache`` is of another type.
            ValueError: The cache is of another model or dtype, has several rows, or has read something else.
        """
        tokens = as_tokens(ids, self.config.vocab_size)
        expect_cache(cache, self._signature, len(tokens))
        self._store(tokens, cache)

    def flush(self) -> None:
        """Write every snapshot in memory to ``directory``, for a later process.

        Raises:
            ValueError: There is no directory.
        """
        if self._disk is None:
            raise ValueError("directory: expected one to write to, got None; pass it when making the PrefixCache.")
        with self._lock:
            nodes = sorted(self._tree.snapshots(), key=lambda node: node.last_used)
        for node in nodes:
            # One by one: files hold whole windows, which share nothing.
            with self._lock:
                copied = None if node.snapshot is None else self._copy_of(node)
            if copied is not None:
                self._write([copied])

    def clear(self) -> None:
        """Forget everything, in memory and on disk, and count anew."""
        with self._lock:
            self._forget()
        if self._disk is not None:
            self._disk.clear()

    def _forget(self) -> None:
        self._tree = RadixTree(self.config.attention_window_size)
        self._dtype: torch.dtype | None = None  # of the states, as the first stored cache has it
        self._counts = dict.fromkeys(("lookups", "hits", "tokens_asked", "tokens_reused", "disk_hits", "evictions"), 0)

    def _start(self, model: Any, tokens: Tensor) -> tuple[RecurrentGemmaCache, int]:
        """A cache of the longest stored prefix, and the depth at which ``tokens`` leave the tree; 0: not worth it."""
        dtype = states_dtype(model)
        with self._lock:
            node, known = self._tree.match(tokens)
            snapshot, windows, depth = node.snapshot, self._tree.windows(node), node.depth
            if self._dtype not in (None, dtype):
                raise ValueError(
                    f"model: expected states in {self._dtype} like those stored, got {dtype}; make a PrefixCache for "
                    "every model."
                )
            node.last_used = next(self._clock)
        # Stored tensors are never written into, so they can be copied outside the lock.
        from_disk = self._from_disk(model, tokens, depth, dtype)
        if from_disk is not None:
            cache = from_disk
        elif snapshot is not None:
            cache = put_together(self.config, tokens[:depth], snapshot, windows)
        else:
            cache = RecurrentGemmaCache(self.config)
        with self._lock:
            self._counts["lookups"] += 1
            self._counts["tokens_asked"] += len(tokens)
            self._counts["tokens_reused"] += cache.columns
            self._counts["hits"] += cache.columns > 0
            self._counts["disk_hits"] += from_disk is not None
        return cache, known if known < len(tokens) and known - cache.columns >= self.min_tokens else 0

    def _from_disk(self, model: Any, tokens: Tensor, beyond: int, dtype: torch.dtype) -> RecurrentGemmaCache | None:
        """A cache of the longest prefix in a file that is longer than ``beyond``; it is back in memory then."""
        while self._disk is not None and (depth := self._disk.find(tokens, dtype)) > beyond:
            stored = self._disk.read(tokens[:depth], dtype)
            if stored is None:  # and forgotten: look for the next
                continue
            cache = put_together(self.config, tokens[:depth], stored[0], [stored[1]])
            layers = [module for module in model.modules() if isinstance(module, RecurrentGemmaDecoderLayer)]
            for layer, cache_layer in zip(layers, cache.layers, strict=True):
                cache_layer.map(methodcaller("to", layer.temporal_pre_norm.weight.device))
            self._store(tokens[:depth], cache)
            return cache
        return None

    @torch.no_grad()
    def _read(self, model: Any, tokens: Tensor, cache: RecurrentGemmaCache) -> None:
        options = {} if isinstance(model, RecurrentGemmaModel) else {"logits_to_keep": 1}
        model(input_ids=tokens[None].long().to(model.device), past_key_values=cache, use_cache=True, **options)

    def _store(self, tokens: Tensor, cache: RecurrentGemmaCache) -> None:
        snapshot, window = take_apart(cache)
        dtype = _dtype(snapshot, window)
        leaving = []
        with self._lock:
            if self._dtype not in (None, dtype):
                raise ValueError(
                    f"cache: expected states in {self._dtype} like those stored, got {dtype}; make a PrefixCache for "
                    "every model."
                )
            self._dtype = dtype
            node = self._tree.insert(tokens, snapshot, window)
            node.last_used = next(self._clock)
            while self._tree.nbytes > self.max_bytes:
                victim = choose_victim(self._tree, self.config, self.policy)
                if self._disk is not None:
                    leaving.append(self._copy_of(victim))
                self._tree.remove(victim)
                self._counts["evictions"] += 1
        self._write(leaving)

    def _copy_of(self, node: Node) -> tuple[Tensor, Snapshot, Window]:
        assert node.snapshot is not None
        return self._tree.ids(node), node.snapshot, join(self._tree.windows(node))

    def _write(self, leaving: list[tuple[Tensor, Snapshot, Window]]) -> None:
        if self._disk is not None:
            for tokens, snapshot, window in leaving:
                self._disk.write(tokens, _dtype(snapshot, window), snapshot, window)


def _config_dtype(config: RecurrentGemmaConfig) -> torch.dtype:
    """The dtype that the model will have, as far as its config knows."""
    named = config.dtype or torch.float32
    return getattr(torch, named) if isinstance(named, str) else named


def _dtype(snapshot: Snapshot, window: Window) -> torch.dtype:
    """The model's, in which histories of convolutions, keys and values are kept."""
    return window.layers[0].dtype if window.layers else snapshot.states[0].conv.dtype
