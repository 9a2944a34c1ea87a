"""DeepMind's JAX checkpoints: Orbax directories, as ``save_parameters`` of ``recurrentgemma/jax/utils.py`` writes them.

Entries are read and written one at a time; Orbax's own calls hold the whole tree in memory.
"""

import asyncio
import contextlib
import importlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recurrent_gemma.conversion_scripts.checkpoints.base import (
    FLOATS,
    Checkpoint,
    ConversionError,
    ReadTensor,
    TensorInfo,
    without_prefix,
)

# Any of them marks a directory as Orbax's; which ones there are depends on the version that wrote it.
_MARKS = ("_METADATA", "manifest.ocdbt", "checkpoint")
# numpy has no bfloat16 of its own: bits go over as integers of the same width.
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def is_orbax(path: Path) -> bool:
    """Whether a directory is an Orbax checkpoint."""
    return path.is_dir() and any((path / mark).is_file() for mark in _MARKS)


class OrbaxCheckpoint(Checkpoint):
    """An Orbax directory of any version that the installed Orbax reads, its parameters bare or below ``params``.

    Args:
        path: The directory that holds ``_METADATA`` or ``manifest.ocdbt``.

    Raises:
        ConversionError: It cannot be read, or holds something else than arrays.
        ImportError: Orbax is not installed.
    """

    kind = "flax"

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._driver = self._find_driver()
        entries = _flatten(self._metadata())
        other = [name for name, value in entries.items() if not hasattr(value, "shape") or value.shape is None]
        if other:
            raise ConversionError(str(path), [f"{name}: expected an array, got something else." for name in other])
        # Orbax keeps an array under its path, joined by dots.
        self._keys = without_prefix({name: name.replace("/", ".") for name in entries}, "params/")
        self.tensors = without_prefix(
            {name: TensorInfo(tuple(value.shape), str(value.dtype)) for name, value in entries.items()}, "params/"
        )

    def read(self, name: str) -> Tensor:
        import tensorstore

        spec = {"driver": self._driver, "kvstore": self._key_value_store(self._keys[name]), "open": True}
        try:
            array = tensorstore.open(spec, read=True).result().read().result()
        except Exception as error:
            raise ConversionError(str(self.path), f"{name}: the values cannot be read ({error}).") from error
        return tensor_of(array)

    def _metadata(self) -> Any:
        ocp = _import_orbax()
        try:
            with _quiet():
                metadata = ocp.PyTreeCheckpointer().metadata(self.path)
        except Exception as error:
            raise self._unreadable(ocp, f"{type(error).__name__}: {error}") from error
        # Up to Orbax 0.9 the tree itself; since then wrapped, and None where it cannot be read.
        tree = getattr(metadata, "item_metadata", metadata)
        tree = getattr(tree, "tree", tree)
        if not isinstance(tree, Mapping):
            raise self._unreadable(ocp, "no tree of arrays in its metadata")
        return tree

    def _unreadable(self, ocp: Any, reason: str) -> ConversionError:
        return ConversionError(
            str(self.path),
            f"expected a complete Orbax checkpoint of a version that orbax-checkpoint {ocp.__version__} reads, got "
            f"{reason}. Is the download complete? A checkpoint of a newer version needs a newer orbax-checkpoint.",
        )

    def _find_driver(self) -> str:
        try:
            fields = json.loads((self.path / "_METADATA").read_bytes())
        except (FileNotFoundError, ValueError):  # written before there was a choice; or Orbax says what is wrong
            return "zarr"
        if fields.get("use_ocdbt") and not (self.path / "manifest.ocdbt").is_file():
            raise ConversionError(
                str(self.path), "expected a complete Orbax checkpoint, got no manifest.ocdbt. Is the download complete?"
            )
        return "zarr3" if fields.get("use_zarr3") else "zarr"

    def _key_value_store(self, key: str) -> dict[str, Any]:
        files = {"driver": "file", "path": f"{self.path}/"}
        if (self.path / "manifest.ocdbt").is_file():
            return {"driver": "ocdbt", "base": files, "path": f"{key}/"}
        return {"driver": "file", "path": f"{self.path}/{key}/"}


def write_orbax(path: Path, tensors: dict[str, TensorInfo], read: ReadTensor) -> None:
    """Write a directory as DeepMind's ``save_parameters`` does, with ``params`` at its top.

    Args:
        path: The directory to make.
        tensors: The entries, by ``/``-separated paths.
        read: Gives the values of each, which are written before the next are asked for.

    Raises:
        ImportError: Orbax is not installed.
    """
    ocp = _import_orbax()
    tree: dict[str, Any] = {}
    for name, info in tensors.items():
        *parents, last = name.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[last] = _Unread(name, info.shape, _numpy_dtype(info.dtype))
    registry = ocp.type_handlers.create_type_handler_registry((_Unread, _one_by_one_handler(read)))
    with _quiet():
        checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=registry))
        checkpointer.save(path.absolute(), args=ocp.args.PyTreeSave({"params": tree}))
        checkpointer.close()


def tensor_of(array: Any) -> Tensor:
    """The torch tensor of a numpy array, bfloat16 included, without a copy where the array allows that."""
    array = array if array.flags.writeable and array.flags.c_contiguous else array.copy(order="C")
    if str(array.dtype) not in FLOATS:
        return torch.from_numpy(array)
    bits = _BITS[array.dtype.itemsize]
    return torch.from_numpy(array.view(str(bits).removeprefix("torch."))).view(getattr(torch, str(array.dtype)))


def array_of(tensor: Tensor) -> Any:
    """The numpy array of a torch tensor, bfloat16 included, without a copy where the tensor is contiguous."""
    bits = tensor.contiguous().view(_BITS[tensor.dtype.itemsize]).numpy()
    return bits.view(_numpy_dtype(str(tensor.dtype).removeprefix("torch.")))


@dataclass(frozen=True, eq=False)
class _Unread:
    """A leaf of the tree to save: what Orbax asks of an array before it is written."""

    name: str
    shape: tuple[int, ...]
    dtype: Any

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class _Unchanged(np.ndarray):
    """An array that is not changed while it is written. Orbax makes a deep copy of arrays to be safe."""

    def __deepcopy__(self, memo: dict[int, Any] | None, /) -> "_Unchanged":
        return self


def _one_by_one_handler(read: ReadTensor) -> Any:
    ocp = _import_orbax()

    class OneByOneHandler(ocp.type_handlers.NumpyHandler):  # type: ignore[name-defined]
        """Writes each array before it asks for the next one, where Orbax's own takes all of them at once."""

        async def serialize(self, values: Sequence[_Unread], infos: Sequence[Any], args: Any = None) -> list[Any]:
            args = args or [ocp.SaveArgs()] * len(values)
            for value, info, arg in zip(values, infos, args, strict=True):
                for written in await super().serialize([array_of(read(value.name)).view(_Unchanged)], [info], [arg]):
                    await asyncio.to_thread(written.result)
            return []

        def memory_size(self, values: Sequence[_Unread]) -> list[tuple[int, int]]:
            return [(value.nbytes, value.nbytes) for value in values]

    return OneByOneHandler()


def _numpy_dtype(name: str) -> Any:
    return np.dtype(importlib.import_module("ml_dtypes").bfloat16 if name == "bfloat16" else name)


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}/{key}" if prefix else str(key))
    return flat


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax warns of files that older versions did not write, and of array types that are not in use."""
    logging = importlib.import_module("absl.logging")
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _import_orbax() -> Any:
    try:
        return importlib.import_module("orbax.checkpoint")
    except ImportError as error:
        raise ImportError(
            'DeepMind\'s JAX checkpoints need orbax-checkpoint: pip install "recurrent-gemma[convert]"'
        ) from error
