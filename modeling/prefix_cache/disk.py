"""Snapshots in files: what no longer fits into memory, found again by a later process.

A file holds one prefix whole, its tokens, states and window, since files share nothing. Its name is the digest of its
tokens, it is written beside its place and then moved there, and it carries a checksum of its tensors.

Opening a directory reads the files' headers. A file of another model raises, since answers from it would be wrong; a
file by our name that cannot be read, or whose checksum is wrong, is deleted with a warning, since a cache may forget.
Files by other names are left alone.
"""

import contextlib
import hashlib
import json
import logging
import re
import threading
import time
import zlib
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from recurrent_gemma.modeling.cache import RecurrentState, StateSignature
from recurrent_gemma.modeling.cache.file import content_of, write_atomically
from recurrent_gemma.modeling.prefix_cache.states import NO_WINDOW, Snapshot, Window

logger = logging.getLogger("recurrent_gemma")

_FORMAT = "recurrent-gemma prefix 1"
_ABANDONED_SECONDS = 3600
_NAME = re.compile(r"prefix-[0-9a-f]{64}\.safetensors")


class DiskStore:
    """Snapshots in a directory, at most ``max_bytes`` of files; the one used longest ago goes first. Thread-safe.

    Args:
        directory: Made where there is none.
        signature: ``state_signature`` of the model.
        max_bytes: Bound of the files' sizes.

    Raises:
        ValueError: A file in the directory is of another model.
    """

    def __init__(self, directory: Path, signature: StateSignature, max_bytes: int) -> None:
        self.directory, self.max_bytes = directory, max_bytes
        self._signature = json.loads(json.dumps(signature))
        self._lock = threading.Lock()
        self._sizes: OrderedDict[Path, int] = OrderedDict()  # the one used last at the end
        self._depths: dict[Path, int] = {}
        directory.mkdir(parents=True, exist_ok=True)
        self._remove_abandoned()
        files = [path for path in directory.iterdir() if _NAME.fullmatch(path.name)]
        for path in sorted(files, key=lambda path: path.stat().st_mtime_ns):
            self._open(path)
        with self._lock:
            self._evict()

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        with self._lock:
            return sum(self._sizes.values())

    def find(self, ids: Tensor, dtype: torch.dtype) -> int:
        """Tokens of the longest prefix of ``ids`` (L,) int32 that there is a file of; 0 without one."""
        with self._lock:
            depths = sorted({depth for depth in self._depths.values() if depth <= len(ids)})
            known = set(self._depths)
        found, digest, done = 0, _digest(dtype), 0
        for depth in depths:
            digest.update(ids[done:depth].numpy().tobytes())
            done = depth
            if self._path(digest) in known:
                found = depth
        return found

    def read(self, ids: Tensor, dtype: torch.dtype) -> tuple[Snapshot, Window] | None:
        """The snapshot after exactly ``ids``, on the CPU; None where the file has gone or turns out to be broken."""
        path = self._path_of(ids, dtype)
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata()
            if not torch.equal(tensors["ids"], ids) or metadata["checksum"] != _checksum(tensors):
                raise ValueError("its contents do not have the checksum they were written with")
        except FileNotFoundError:
            with self._lock:
                self._forget(path)
            return None
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            self._delete_broken(path, error)
            return None
        with self._lock:
            if path in self._sizes:
                self._sizes.move_to_end(path)
        return _snapshot(tensors)

    def write(self, ids: Tensor, dtype: torch.dtype, snapshot: Snapshot, window: Window) -> None:
        """Write a snapshot after ``ids`` (L,) int32, unless there is a file of it or it is larger than the bound."""
        path = self._path_of(ids, dtype)
        with self._lock:
            if path in self._sizes:
                self._sizes.move_to_end(path)
                return
        tensors = {"ids": ids}
        for index, state in enumerate(snapshot.states):
            tensors[f"recurrent.{index}.conv"], tensors[f"recurrent.{index}.rg_lru"] = state
        for index, layer in enumerate(window.layers):
            tensors[f"attention.{index}"] = layer
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        if sum(tensor.nbytes for tensor in tensors.values()) > self.max_bytes:
            return
        metadata = {
            "format": _FORMAT,
            "signature": json.dumps(self._signature),
            "depth": str(len(ids)),
            "checksum": _checksum(tensors),
        }
        content = serialize(tensors, metadata)
        write_atomically(path, content)
        size = len(content)
        with self._lock:
            self._sizes[path], self._depths[path] = size, len(ids)
            self._evict()

    def clear(self) -> None:
        """Delete all files."""
        with self._lock:
            for path in list(self._sizes):
                self._delete(path)

    def _open(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
            signature, depth = json.loads(metadata["signature"]), int(metadata["depth"])
            if metadata["format"] != _FORMAT:
                raise ValueError(f"its format is {metadata['format']!r}, not {_FORMAT!r}")
        except FileNotFoundError:  # another process was faster
            return
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            self._delete_broken(path, error)
            return
        for (name, expected), (_, actual) in zip(self._signature, signature, strict=True):
            if expected != actual:
                raise ValueError(
                    f"directory: expected files of this model ({name} = {expected}), got {path} of another one "
                    f"({name} = {actual}); give every model a directory of its own."
                )
        self._sizes[path], self._depths[path] = path.stat().st_size, depth

    def _remove_abandoned(self) -> None:
        """Delete what processes that were ended while writing have left; whoever writes now is done in less time."""
        for path in self.directory.glob(".prefix-*.tmp"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                    path.unlink()

    def _evict(self) -> None:
        while sum(self._sizes.values()) > self.max_bytes:
            self._delete(next(iter(self._sizes)))

    def _delete_broken(self, path: Path, error: Exception) -> None:
        logger.warning("prefix cache: deleted %s, which cannot be read: %s", path, error)
        with self._lock:
            self._delete(path)

    def _delete(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._forget(path)

    def _forget(self, path: Path) -> None:
        self._sizes.pop(path, None)
        self._depths.pop(path, None)

    def _path_of(self, ids: Tensor, dtype: torch.dtype) -> Path:
        digest = _digest(dtype)
        digest.update(ids.numpy().tobytes())
        return self._path(digest)

    def _path(self, digest: "hashlib._Hash") -> Path:
        return self.directory / f"prefix-{digest.hexdigest()}.safetensors"


def _digest(dtype: torch.dtype) -> "hashlib._Hash":
    # States of another precision are those of another model.
    return hashlib.sha256(str(dtype).encode())


def _checksum(tensors: dict[str, Tensor]) -> str:
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(content_of(tensors[name]), checksum)
    return f"{checksum:08x}"


def _snapshot(tensors: dict[str, Tensor]) -> tuple[Snapshot, Window]:
    recurrent = sum(name.endswith(".rg_lru") for name in tensors)
    states = (
        RecurrentState(tensors[f"recurrent.{i}.conv"], tensors[f"recurrent.{i}.rg_lru"]) for i in range(recurrent)
    )
    layers = tuple(tensors[f"attention.{i}"] for i in range(sum(name.startswith("attention.") for name in tensors)))
    return Snapshot(tuple(states)), Window(layers[0].shape[2], layers) if layers else NO_WINDOW
